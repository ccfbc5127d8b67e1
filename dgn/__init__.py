"""dgn: see what a convolutional network has learned, all of it, at once."""

__version__ = "0.1.0"
