"""The Python front door. What is public is listed in `dgn.__all__`."""
