"""Weights that Ray's object store holds are the same memory for all workers of a machine."""

import pickle
from pathlib import Path

import pytest
import ray
import torch

from dgn.method.decoder import read_decoder
from dgn.method.sharing import as_arrays, as_tensors
from dgn.networks import embedded
from dgn.networks.frozen import FrozenNetwork
from dgn.networks.network import Network
from dgn.networks.weights import load_weights

TENSORS = {
    "a matrix": torch.rand(2, 3),
    "a number": torch.tensor(3),
    "nothing": torch.rand(0, 4),
    "half": torch.rand(4, 4).half(),
    "bfloat16": torch.rand(4, 4).bfloat16(),
    "turned": torch.rand(3, 4).t(),
    "channels last": torch.rand(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
    "truths": torch.tensor([True, False]),
}


@pytest.mark.parametrize("name", TENSORS)
def test_tensors_come_back_as_they_were(name):
    own = TENSORS[name]
    for may_write in (False, True):
        again = as_tensors(pickle.loads(pickle.dumps(as_arrays({name: own}))), may_write)[name]
        assert again.dtype == own.dtype
        assert again.shape == own.shape
        assert torch.equal(again, own)
        assert again.stride() == own.stride() or not own.numel() or name == "turned"


def through_the_store(what):
    """As two workers get it."""
    reference = ray.put(what)
    return ray.get(reference), ray.get(reference)


@pytest.mark.usefixtures("local_ray")
def test_weights_of_networks_and_decoders_are_shared():
    weights, again = through_the_store(load_weights("vgg16-mini"))
    assert weights.state.keys() == again.state.keys()
    assert all(tensor.data_ptr() == again.state[name].data_ptr() for name, tensor in weights.state.items())
    path = embedded.weights_path("drawings")
    decoder, again = through_the_store(read_decoder(Path(path).read_bytes(), "drawings"))
    assert all(tensor.data_ptr() == again.weights[name].data_ptr() for name, tensor in decoder.weights.items())


@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_workers_network_is_the_shared_memory_and_answers_the_same(dtype):
    """Also in a precision that is not the file's, and with the channels last."""
    weights = load_weights("vgg16-mini")
    workers, _ = through_the_store(weights.for_workers(dtype))
    shared = {tensor.data_ptr() for tensor in (*workers.state.values(), *workers.rounded.values())}
    own, frozen = (FrozenNetwork(each, dtype=dtype) for each in (weights, workers))
    assert all(tensor.data_ptr() in shared for tensor in frozen.model.state_dict().values())
    picture = torch.rand(2, 3, own.size_px, own.size_px)
    layers = ["conv3_1", "fc8"]
    expected, found = own.responses(picture, layers), frozen.responses(picture, layers)
    assert all(torch.equal(found[layer], expected[layer]) for layer in layers)


class Counts(torch.nn.Module):
    """Writes into one of its weights."""

    def __init__(self):
        super().__init__()
        self.register_buffer("count", torch.zeros(100))
        self.conv, self.fc = torch.nn.Conv2d(3, 8, 3), torch.nn.Linear(8, 4)

    def forward(self, x):
        self.count += 1
        return self.fc(self.conv(x).mean((2, 3)))


@pytest.mark.usefixtures("local_ray")
def test_code_of_ones_own_may_write_into_its_weights():
    network = Network(Counts(), size=32, mean=0, std=1)
    weights, again = through_the_store(load_weights(network))
    weights.state["count"] += 1
    assert (weights.state["count"][0] - again.state["count"][0]).item() == 1


def test_code_of_ones_own_rounds_its_weights_itself():
    """After its first run, which may fill them."""
    assert load_weights(Network(Counts(), size=32, mean=0, std=1)).for_workers(torch.bfloat16).rounded == {}
    assert load_weights("vgg16-mini").for_workers(torch.bfloat16).rounded
    assert load_weights("vgg16-mini").for_workers(torch.float32).rounded == {}
