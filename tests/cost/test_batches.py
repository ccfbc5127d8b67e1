"""How many targets a device optimises together."""

import copy
import gc
import weakref
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch

from dgn.cost.batches import choose_batch_size
from dgn.cost.counted import count_cost
from dgn.networks.registry import network_named
from tests.helpers.own_networks import Plain, frozen
from tests.helpers.tuned import TUNED


def test_a_cpu_takes_the_tuned_size_or_a_few(quick_config, mini):
    assert choose_batch_size(quick_config, "untrained", mini, "fc8") == mini.engine.usual_batch_size == 4
    assert choose_batch_size(quick_config, "untrained", mini, "fc8", TUNED) == 2
    only_untrained = replace(TUNED, batch_size={"untrained": 2})
    assert choose_batch_size(quick_config, "pretrained", mini, "fc8", only_untrained) == 4


def test_what_was_counted_keeps_no_network_alive(quick_config, monkeypatch):
    """A network may hold the weights of the module that it was made of."""
    counted = []
    monkeypatch.setattr("dgn.cost.batches.count_cost", lambda *what: counted.append("once") or count_cost(*what))
    classifier = frozen(Plain())
    classifier.engine = copy.copy(classifier.engine)
    classifier.engine.usual_batch_size, classifier.engine.free_bytes = None, lambda: 10.0**9
    sizes = {choose_batch_size(quick_config, "untrained", classifier, "fc") for _ in range(3)}
    assert (len(sizes), counted) == (1, ["once"])
    model = weakref.ref(classifier.network.model)
    del classifier
    gc.collect()
    assert model() is None


@pytest.fixture
def on_gpu(mini, monkeypatch):
    """A classifier on a GPU with so many bytes free, as far as its engine knows."""
    cuda = pytest.importorskip("dgn.engine.cuda", reason="Triton comes with PyTorch's builds for GPUs alone")

    def make(free_bytes, reserved=0, allocated=0):
        monkeypatch.setattr(cuda.CudaEngine, "selected", lambda engine: nullcontext())
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free_bytes, 10**12))
        monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: reserved)
        monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: allocated)
        network = copy.copy(mini)
        network.engine = cuda.CudaEngine(torch.device("cuda:0"))
        return network

    return make


def test_no_more_than_fit_on_a_gpu(on_gpu, quick_config):
    each = count_cost(quick_config, "untrained", network_named("vgg16-mini"), "fc8").bytes_per_target
    tuned = replace(TUNED, batch_size={"untrained": 64})
    for fitting, expected in ((8.5, 8), (64.5, 64), (100.5, 64), (0.3, 1)):
        network = on_gpu(int(fitting * each / 0.8))  # a fifth is left free
        assert choose_batch_size(quick_config, "untrained", network, "fc8", tuned) == expected
    assert choose_batch_size(quick_config, "untrained", network, "fc8") == 1
    assert choose_batch_size(quick_config, "untrained", on_gpu(int(100.5 * each / 0.8)), "fc8") == 100
    reserved = on_gpu(0, reserved=int(10 * each / 0.8), allocated=int(3.5 * each / 0.8))
    assert choose_batch_size(quick_config, "untrained", reserved, "fc8") == 6, "what PyTorch holds and nothing uses"
