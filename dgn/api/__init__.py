"""The Python front door. `dgn.__all__` lists its names."""
