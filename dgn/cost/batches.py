"""How many targets a device optimises at a time, unless the user chose."""

from __future__ import annotations

from weakref import WeakKeyDictionary

from torch import nn

from dgn.cost.counted import count_cost
from dgn.cost.tuned import Tuned
from dgn.method.architecture import Weights
from dgn.method.recipes import RenderConfig
from dgn.networks.frozen import FrozenNetwork
from dgn.networks.network import Network
from dgn.targets import Mode

_counted: WeakKeyDictionary[Network, dict[tuple[RenderConfig, Mode, str], int]] = WeakKeyDictionary()


def choose_batch_size(
    config: RenderConfig,
    mode: Mode,
    classifier: FrozenNetwork,
    layer: str,
    tuned: Tuned | None = None,
    decoder: Weights | nn.Module | None = None,
) -> int:
    """The tuned size, limited on a GPU to what fits into memory by the counted bytes. Not tuned: all that fit on a GPU;
    on a CPU a few, since more bring nothing (measured).

    Args:
        decoder: as in `count_cost`.
    """
    engine = classifier.engine
    size = tuned.batch_size.get(mode) if tuned else None
    if engine.usual_batch_size is not None:
        return size or engine.usual_batch_size
    fitting = max(1, int(engine.free_bytes() // _bytes_per_target(config, mode, classifier.network, layer, decoder)))
    return min(size, fitting) if size else fitting


def _bytes_per_target(
    config: RenderConfig, mode: Mode, network: Network, layer: str, decoder: Weights | nn.Module | None
) -> int:
    """Counted once per network, because counting runs it. Nothing is kept of a network that nobody else needs, nor of a
    generator of the user's, as another may have codes of the same shape."""
    if isinstance(decoder, nn.Module):
        return count_cost(config, mode, network, layer, decoder).bytes_per_target
    known = _counted.setdefault(network, {})
    if (config, mode, layer) not in known:
        known[config, mode, layer] = count_cost(config, mode, network, layer).bytes_per_target
    return known[config, mode, layer]
