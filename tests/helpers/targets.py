"""Targets that many tests render."""

from dgn.targets import Target, WeightedUnit


def class_targets(units, mode="untrained", seed=0):
    return [Target((WeightedUnit("fc8", unit),), mode, seed) for unit in units]


def filter_target(layer, unit, mode="untrained", seed=0):
    return Target((WeightedUnit(layer, unit),), mode, seed)
