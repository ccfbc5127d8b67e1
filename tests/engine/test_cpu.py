"""The CPU's engine draws what plain PyTorch draws."""

import pytest
import torch

from dgn.engine import engine_for
from dgn.engine.cpu import CpuEngine, convolutions
from dgn.engine.cpu.algorithms import SAME_3, SAME_4, UPSAMPLED
from dgn.engine.cpu.winograd import Convolution
from dgn.method.architecture import Architecture
from dgn.method.engine import Engine
from dgn.method.generator import generate_shared, initial_weights
from dgn.targets import MODES
from tests.conftest import WIDTH


def starts(architecture, num_targets):
    """N targets' stacked weights and, in the pretrained mode, the weights that they share; float64."""
    streams = [torch.Generator().manual_seed(seed) for seed in range(num_targets)]
    drawn = [{name: w.double() for name, w in initial_weights(architecture, s).items()} for s in streams]
    own = {name: torch.stack([each[name] for each in drawn]) for name in architecture.trainable}
    return own, {name: weight for name, weight in drawn[0].items() if name not in own}


def drawn_and_gradients(engine, architecture, own, shared):
    own = {name: engine.lay_out(tensor).requires_grad_() for name, tensor in own.items()}
    shared = engine.prepare(architecture, shared, torch.float64) if shared else {}
    pictures = engine.draw(architecture, own, shared, own["alpha"] * 1.0)
    return [pictures, *torch.autograd.grad((pictures**3).sum(), list(own.values()))]


def assert_are_equal_but_for_rounding(some, others):
    for one, other in zip(some, others, strict=True):
        assert one.shape == other.shape
        assert (one - other).norm() <= 1e-9 * other.norm() + 1e-9


@pytest.mark.parametrize("mode", MODES)
def test_a_batch_is_drawn_as_the_plain_engine_draws_it(mode):
    """Several targets, in float64, with gradients."""
    architecture = Architecture(mode, WIDTH)
    own, shared = starts(architecture, 3)
    plain = drawn_and_gradients(Engine(), architecture, own, shared)
    assert plain[0].shape == (3, 3, 224, 224)
    for engine in (CpuEngine(), CpuEngine(is_winograd=False)):
        assert_are_equal_but_for_rounding(drawn_and_gradients(engine, architecture, own, shared), plain)


@pytest.mark.parametrize("mode", MODES)
def test_fewer_multiplications_draw_the_same_picture_at_full_width(mode, monkeypatch):
    """In float64, with gradients, through every algorithm that full width chooses, and a decoder's prepared kernels."""
    architecture = Architecture(mode)
    own, shared = starts(architecture, 1)
    used = []

    class Noted(Convolution):
        @staticmethod
        def apply(x, bias_O, algorithm, *rest):
            used.append(algorithm)
            return Convolution.apply(x, bias_O, algorithm, *rest)

    monkeypatch.setattr(convolutions, "Convolution", Noted)
    quick = drawn_and_gradients(CpuEngine(), architecture, own, shared)
    expected = [UPSAMPLED[2], *[UPSAMPLED[3]] * 3, UPSAMPLED[4], SAME_4]
    if mode == "pretrained":  # frozen, the 'same' convolutions of stages 3 and 4 too, and one more upsampling
        expected += [UPSAMPLED[3], SAME_3, SAME_3]
    assert sorted(map(id, used)) == sorted(map(id, expected))
    assert_are_equal_but_for_rounding(quick, drawn_and_gradients(Engine(), architecture, own, shared))
    assert len(used) == len(expected), "the plain engine has one form"


def test_frozen_weights_draw_a_batch_as_they_draw_each():
    """With a GPU's normalisation of all pictures at once; its Triton kernels are tested in test_kernels.py."""
    stacked = pytest.importorskip("dgn.engine.cuda.stacked", reason="Triton comes with PyTorch's builds for GPUs alone")
    architecture = Architecture("pretrained", WIDTH)
    own, shared = starts(architecture, 3)
    together = generate_shared(architecture, shared, own["alpha"], stacked.shared_statistics)
    each = engine_for("cpu").draw(architecture, own, shared, own["alpha"])
    torch.testing.assert_close(each, together, rtol=1e-9, atol=1e-9)
