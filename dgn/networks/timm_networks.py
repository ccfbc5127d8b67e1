"""timm's networks, by `timm:NAME`; needs timm, an extra of dgn's."""

from __future__ import annotations

import sys
from typing import Any

from torch import Tensor, nn

from dgn.errors import DgnError, WeightsMissing
from dgn.networks.network import NamedBuilder, Network, Output
from dgn.networks.torchvision_networks import imagenet_labels
from dgn.text import in_one_line, near

PREFIX = "timm:"


def _timm() -> Any:
    try:
        import timm
    except ImportError as error:
        raise DgnError("timm is not installed: pip install 'dgn[timm]'") from error
    return timm


class TimmBuilder(NamedBuilder):
    """Builds a network with random weights; its name is without the prefix."""

    def __call__(self) -> nn.Module:
        return _timm().create_model(self.name, pretrained=False, **self.arguments)

    def converted(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Weights as their authors published them under timm's names, if timm has a filter for them."""
        model = self()
        convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
        try:
            return convert(state, model) if convert else state
        except Exception:  # filters expect their own authors' files; any other stays as it is
            return state

    def download(self) -> dict[str, Tensor]:
        """The pretrained weights. Raises: WeightsMissing without internet, or if there are none."""
        try:
            return _timm().create_model(self.name, pretrained=True).state_dict()
        except Exception as error:  # of several download libraries
            raise WeightsMissing(f"timm's download failed ({in_one_line(error)})") from error


def timm_network(name: str) -> Network:
    """`timm:NAME`, described by timm's own configuration of it. Raises: DgnError for an unknown name."""
    timm = _timm()
    plain = name.removeprefix(PREFIX)
    architecture = plain.partition(".")[0]
    if architecture not in timm.list_models():
        raise DgnError(f"unknown network '{name}': {near(architecture, timm.list_models())} (timm {timm.__version__})")
    if plain != architecture and plain not in timm.list_pretrained(f"{architecture}*"):
        raise DgnError(f"unknown network '{name}': {near(plain, timm.list_pretrained(f'{architecture}*'))}")
    builder = TimmBuilder(plain)
    model = Network(builder, size=224, mean=0.0, std=1.0, name=name).bare()
    wants = timm.data.resolve_model_data_config(model)
    _, height, width = wants["input_size"]
    if height != width:
        raise DgnError(f"{name} reads pictures of {width} x {height} px: dgn draws squares")
    mean, std = tuple(wants["mean"]), tuple(wants["std"])
    output: Output | None = None if getattr(model, "num_classes", 0) else "none"  # a backbone's features
    return Network(builder, size=height, mean=mean, std=std, labels=_labels(timm, model), output=output, name=name)


def _labels(timm: Any, model: nn.Module) -> tuple[str, ...]:
    """ImageNet's labels for networks of ImageNet's classes, 1,000 to 22,000 of them; empty for others."""
    subset = timm.data.infer_imagenet_subset(model)
    if subset is None:
        return ()
    if subset == "imagenet-1k":
        return imagenet_labels()
    info = timm.data.ImageNetInfo(subset)
    return tuple(info.index_to_description(i) for i in range(info.num_classes()))
