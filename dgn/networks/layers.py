"""What targets can name in a network: its layers, their units, and the labels of its classes."""

from __future__ import annotations

from dataclasses import dataclass

from dgn.targets import Target


@dataclass(frozen=True)
class Layers:
    """A network's layers and labels."""

    network: str
    units: dict[str, int]  # layer -> number of units, in order of depth
    class_layer: str
    filter_layers: tuple[str, ...]  # the convolutions, in order of depth
    labels: tuple[str, ...]  # of the classes, by unit
    aliases: dict[str, str]  # dotted module name -> the layer's usual name, for VGG

    def __repr__(self) -> str:
        return f"<{self.network}: {len(self.units)} layers, {len(self.labels):,} classes in {self.class_layer}>"

    def label(self, target: Target) -> str | None:
        """The labels of the target's classes, joined by ` + `; None for units of other layers."""
        if target.layers != (self.class_layer,):
            return None
        return " + ".join(self.labels[u.unit] for u in target.units)
