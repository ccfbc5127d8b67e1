"""dgn: see what a convolutional network has learned, all of it, at once.

In a notebook:

    import dgn

    dgn.render("vgg16-mini", "classes:star,heart", preset="draft")
    dgn.open_run("s3://bucket/run").best("fc8", 10)  # of a run that the command `dgn render` made
    dgn.layers("vgg16")

Names are loaded on first use, so that `import dgn` takes no time.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from dgn.api.drawing import layers, render
    from dgn.api.pictures import Picture, Pictures
    from dgn.api.reading import OpenRun, open_run
    from dgn.errors import DgnError, RunDamaged, StoreError, TargetError, WeightsMismatch, WeightsMissing
    from dgn.networks.layers import Layers
    from dgn.networks.network import Network
    from dgn.networks.registry import known_networks
    from dgn.statuses import Status

_WHERE = {
    "render": "dgn.api.drawing",
    "open_run": "dgn.api.reading",
    "layers": "dgn.api.drawing",
    "known_networks": "dgn.networks.registry",
    "Picture": "dgn.api.pictures",
    "Pictures": "dgn.api.pictures",
    "OpenRun": "dgn.api.reading",
    "Layers": "dgn.networks.layers",
    "Network": "dgn.networks.network",
    "Status": "dgn.statuses",
    "DgnError": "dgn.errors",
    "TargetError": "dgn.errors",
    "WeightsMissing": "dgn.errors",
    "WeightsMismatch": "dgn.errors",
    "StoreError": "dgn.errors",
    "RunDamaged": "dgn.errors",
}

__all__ = [
    "DgnError",
    "Layers",
    "Network",
    "OpenRun",
    "Picture",
    "Pictures",
    "RunDamaged",
    "Status",
    "StoreError",
    "TargetError",
    "WeightsMismatch",
    "WeightsMissing",
    "known_networks",
    "layers",
    "open_run",
    "render",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'dgn' has no attribute '{name}'")
    value = globals()[name] = getattr(import_module(_WHERE[name]), name)
    return value


def __dir__() -> list[str]:
    return [*__all__, *(name for name in globals() if name.startswith("__"))]
