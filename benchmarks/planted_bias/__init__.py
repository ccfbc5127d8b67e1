"""Does the method find biases that a network learned? `python -m benchmarks.planted_bias`, see `__main__`."""
