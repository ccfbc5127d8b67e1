"""What targets can name in a network: its layers, their units, and the labels of its classes."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from dgn.errors import DgnError, TargetError
from dgn.targets import Target
from dgn.text import plural

OUTPUT = "output"  # the layer of classes if no single module has them as units: the mean of two heads, for instance


@dataclass(frozen=True)
class Layers:
    """A network's layers and labels.

    A module that runs more than once has a layer for each call: `relu@1`, `relu@2`.
    """

    network: str
    units: dict[str, int]  # layer -> number of units, in order of depth
    class_layer: str | None  # None if the network has no classes, see `why_no_classes`
    filter_layers: tuple[str, ...]  # what the convolutions pass on, in order of depth: after the norm if one follows
    labels: tuple[str, ...]  # of the classes, by unit; empty if they have none
    aliases: dict[str, str]  # dotted module name -> the layer's usual name, for VGG
    norms: dict[str, str] = field(default_factory=dict)  # convolution -> its norm, if that is what reads it
    axes: dict[str, int] = field(default_factory=dict)  # layer -> axis of its units in the module's output
    class_output: str = ""  # name of the tensor with the classes' values in the network's output
    output: str = "softmax"  # what makes probabilities of the classes' values: softmax, sigmoid or none
    is_probability: bool = False  # whether the network's own output has that applied
    is_symbolic: bool = True  # whether the network runs on tensors without values
    num_channels: int = 3  # of the pictures: 3, or 1 for grey
    why_no_classes: str = ""
    unused: frozenset[str] = frozenset()  # weights that nothing reads, such as those of heads for training

    def __repr__(self) -> str:
        classes = f"{self.num_classes:,} classes in {self.class_layer}" if self.class_layer else "no classes"
        return f"<{self.network}: {len(self.units)} layers, {classes}>"

    @property
    def num_classes(self) -> int:
        return self.units[self.class_layer] if self.class_layer else 0

    def label(self, target: Target) -> str | None:
        """The labels of the target's classes, joined by ` + `, or a direction's name; None for other targets."""
        if target.measure != "sum":
            return target.name
        if target.layers != (self.class_layer,) or not self.labels:
            return None
        return " + ".join(self.labels[u.unit] for u in target.units)

    def class_name(self, class_: int) -> str:
        """A class's label, or `class 7` where there are none."""
        return self.labels[class_] if self.labels else f"class {class_}"

    def labelled(self, labels: tuple[str, ...]) -> Layers:
        """The same layers with these labels. Raises: DgnError if there is not one per class."""
        if self.num_classes == 1 < len(labels):
            raise DgnError(
                f"{self.network}: {len(labels)} labels for a single logit, which is one class: give one label, that of "
                "the class for which it is high"
            )
        if labels and len(labels) != self.num_classes:
            raise DgnError(
                f"{self.network}: {plural(len(labels), 'label')} for {self.num_classes} classes"
                f"{f' in {self.class_layer}' if self.class_layer else ''}; expected one per class, in their order"
            )
        return replace(self, labels=labels)

    def without(self, part: str, why: str) -> Layers:
        """The layers outside of one of the network's children, which held the classes. `why` there are none."""
        kept = {
            layer: count
            for layer, count in self.units.items()
            if layer != OUTPUT and self.module_of(layer)[0].partition(".")[0] != part
        }
        filters = tuple(layer for layer in self.filter_layers if layer in kept)
        return replace(self, units=kept, filter_layers=filters, class_layer=None, labels=(), why_no_classes=why)

    def classes(self) -> str:
        """The layer of the classes. Raises: TargetError if the network has none."""
        if self.class_layer is None:
            raise TargetError(f"{self.network} has no classes: {self.why_no_classes}; its filters can be drawn")
        return self.class_layer

    def module_of(self, layer: str) -> tuple[str, int]:
        """The dotted name of the module behind a layer, and which of its calls, from 0."""
        name, _, call = layer.partition("@")
        names = {alias: module for module, alias in self.aliases.items()}
        return names.get(name, name), int(call or 1) - 1
