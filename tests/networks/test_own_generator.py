"""Generators of one's own: what they draw, and what is refused."""

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import dgn
from dgn.cost.counted import count_cost
from dgn.errors import DgnError
from dgn.method.recipes import PRESETS
from dgn.networks.own_code import own_code
from dgn.networks.own_generator import own_generator
from dgn.networks.registry import network_named
from tests.helpers.own_networks import PX, Own, network

CPU = torch.device("cpu")
STANDARD = PRESETS["standard"]["pretrained"]


class Draws(nn.Module):
    """Pictures of `px` from codes, by a function of this module and the codes."""

    def __init__(self, draw=lambda self, codes: self.flat(codes), code_shape=(3,), px=8, part=None):
        super().__init__()
        self.part = part
        self.draw, self.code_shape, self.px = draw, code_shape, px
        self.weight = nn.Parameter(torch.eye(3))

    def flat(self, codes):
        """One colour each."""
        colours = torch.sigmoid(codes @ self.weight)
        return colours[:, :, None, None].expand(-1, -1, self.px, self.px)

    def forward(self, codes):
        return self.draw(self, codes)


class Remembers(nn.Module):
    """Keeps something other than tensors in its state."""

    def get_extra_state(self):
        return {"steps": 3}


def see_colours():
    """A network whose three units are 100 times the mean red, green and blue: far more than the penalty on codes."""
    model = Own(lambda self, x: self.fc(x.mean((2, 3))), fc=nn.Linear(3, 3))
    model.fc.weight = nn.Parameter(100 * torch.eye(3))
    nn.init.zeros_(model.fc.bias)
    return network(model, mean=0, std=1)


@pytest.mark.parametrize("unit", [0, 2])
def test_codes_reach_the_known_optimum(unit):
    """Of flat pictures the reddest excites mean red most. Codes bend towards three deviations."""
    given = Draws()
    [picture] = dgn.render(
        see_colours(), f"classes:{unit}", modes="pretrained", generator=given, updates=120, precision="float32",
        progress=False,
    )  # fmt: skip
    assert picture.image.size == (PX, PX)
    colours = [low for low, _ in picture.image.getextrema()]
    assert picture.image.getextrema() == tuple((one, one) for one in colours)
    most = torch.tensor(3.0).sigmoid().item()  # 0.953
    assert most - 0.04 < colours[unit] / 255 <= most
    assert picture.activation == pytest.approx(100 * colours[unit] / 255)
    assert given.weight.requires_grad, "the given module stays as it is"
    assert given.training


def test_each_target_of_a_batch_has_a_code_of_its_own():
    options = {"modes": "pretrained", "generator": Draws(), "updates": 30, "precision": "float32", "progress": False}
    together = dgn.render(see_colours(), "classes:0-2", **options)
    alone = [dgn.render(see_colours(), f"classes:{unit}", **options)[0] for unit in range(3)]
    assert [one.png for one in together] == [one.png for one in alone]
    assert len({one.png for one in together}) == 3


def test_maps_as_codes():
    class Up(nn.Module):
        code_shape = (4, 2, 2)

        def __init__(self):
            super().__init__()
            self.conv = nn.ConvTranspose2d(4, 3, 8, 8)
            nn.init.constant_(self.conv.weight, 0.2)

        def forward(self, codes):
            return torch.sigmoid(self.conv(codes))

    [picture] = dgn.render(
        see_colours(), "classes:1", modes="pretrained", generator=Up, updates=40, precision="float32", progress=False
    )
    assert picture.activation > 80, "50 at code zero, 92 at three deviations"


def test_workers_draw_with_the_weights_that_were_tried(tmp_path):
    """Their machines may lack the file that the function reads."""
    path = tmp_path / "gen.py"
    path.write_text(
        "from torch import nn\n"
        "class Net(nn.Module):\n"
        "    code_shape = (3,)\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.fc = nn.Linear(3, 3)\n"
        "    def forward(self, codes):\n"
        "        return self.fc(codes).sigmoid()[:, :, None, None].expand(-1, -1, 4, 4)\n"
    )
    code = own_code(f"{path}:Net")
    first = own_generator(code)
    other = own_generator(own_code(f"{path}:Net"))
    assert other.sha256 == first.sha256, "the function runs once per process"
    state = {name: tensor + 1 for name, tensor in first.state.items()}
    moved = own_generator(lambda: _filled(code(), state))
    codes = torch.ones(1, 3)
    assert torch.equal(moved.on(CPU)(codes), _filled(code(), state)(codes))
    assert not torch.equal(moved.on(CPU)(codes), first.on(CPU)(codes))
    assert moved.sha256 != first.sha256
    assert not any(parameter.requires_grad for parameter in first.on(CPU).parameters())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_pictures_of_any_precision(dtype):
    given = Draws(lambda self, codes: self.flat(codes).to(dtype))
    [picture] = dgn.render(see_colours(), "classes:1", modes="pretrained", generator=given, updates=2, progress=False)
    assert picture.image.size == (PX, PX)


def test_the_hash_is_of_function_and_code(tmp_path):
    path = tmp_path / "two.py"
    text = Path(__file__).read_text()
    path.write_text(f"{text}\ndef happy():\n    return Draws()\n\n\ndef sad():\n    return Draws(px=4)\n")
    happy, sad = (own_generator(own_code(f"{path}:{name}")) for name in ("happy", "sad"))
    assert happy.sha256 != sad.sha256
    path.write_text(path.read_text() + "# other\n")
    assert own_generator(own_code(f"{path}:happy")).sha256 != happy.sha256


class Draw3(Draws):
    """With numbers that its state leaves out: in a buffer, and by themselves."""

    def __init__(self, is_buffer=True):
        super().__init__(lambda self, codes: self.flat(codes @ self.mixed))
        if is_buffer:
            self.register_buffer("mixed", torch.randn(3, 3), persistent=False)
        else:
            self.mixed = torch.randn(3, 3)


def test_numbers_that_a_state_leaves_out():
    """Each process makes them anew."""
    codes = torch.ones(1, 3)
    generators = []
    for seed in range(2):
        torch.manual_seed(seed)
        generators.append(replace(own_generator(Draw3), build=Draw3))
    first, second = (generator.on(CPU)(codes) for generator in generators)
    assert torch.equal(generators[0].on(CPU)(codes), first)
    assert not torch.equal(first, second)
    bare = own_generator(Draw3(is_buffer=False))
    torch.manual_seed(2)
    bare = replace(bare, build=lambda: Draw3(is_buffer=False))
    with pytest.raises(DgnError, match="differs from machine to machine: expected one whose numbers are all param"):
        bare.on(CPU)


def test_what_a_function_returns_stays_as_it_is():
    kept = Draws().half()
    weight, state = kept.weight, torch.get_rng_state()
    generator = own_generator(lambda: kept)
    module = generator.on(CPU)
    assert kept.training
    assert kept.weight is weight
    assert weight.requires_grad
    assert weight.dtype == torch.float16
    assert module.weight.dtype == torch.float32
    assert torch.equal(torch.get_rng_state(), state)


def _filled(module, state):
    module.load_state_dict(state)
    return module


def test_what_it_costs_is_counted():
    generator = own_generator(Draws(lambda self, codes: self.flat(codes.tanh()), px=16))
    config = dgn.runs.config.RunConfig().render_config("float32", generator)
    cost = count_cost(config, "pretrained", network_named("vgg16-mini"), None, generator.on(CPU))
    assert cost.num_trainable == 3
    assert cost.generator_ops_per_update == 2 * (2 * 3 * 3), "the product, and its gradient for the codes"
    assert 0 < cost.generator_map_bytes < 1000


RANDOM = itertools.count()
BAD = {
    "no module": (3, "generator is a int: expected an nn.Module or a function that returns one"),
    "returns no module": (lambda: 3, "returned a int: expected an nn.Module"),
    "no shape": (nn.Linear(3, 3), "generator Linear has the code_shape None: expected an attribute"),
    "a strange shape": (Draws(code_shape="big"), "has the code_shape 'big'"),
    "an empty shape": (Draws(code_shape=(0,)), "has the code_shape (0,)"),
    "another shape": (
        Draws(code_shape=(5,)),
        "generator Draws does not run on codes of shape (3, 5) on cpu (RuntimeError:",
    ),
    "no tensor": (Draws(lambda self, codes: [codes]), "returned a list: expected pictures, a tensor (N, 3, H, H)"),
    "nothing": (Draws(px=0), "drew 3 codes as (3, 3, 0, 0)"),
    "whole numbers": (Draws(lambda self, codes: self.flat(codes).int()), "torch.int32: expected floats (N, 3, H, H)"),
    "rounded": (Draws(lambda self, codes: self.flat(codes.round())), "passes a zero gradient to its codes"),
    "written over": (
        Draws(lambda self, codes: self.flat(codes).contiguous().sigmoid().sqrt_().square_()),
        "passes no gradient to its codes (RuntimeError: one of the variables needed",
    ),
    "a number for each character": (Draws(code_shape="12"), "has the code_shape '12'"),
    "too many numbers": (Draws(code_shape=(4, 1024, 1024)), "codes of 4,194,304 numbers: expected at most 1,048,576"),
    "no numbers yet": (Draws(code_shape=(3,), part=nn.LazyLinear(3)), "'part.weight' has no shape yet"),
    "state of its own": (Draws(part=Remembers()), "'part._extra_state' is not a tensor of plain numbers"),
    "raises": (lambda: nn.Linear(3, "3"), "generator <lambda> failed: TypeError"),
    "grey": (Draws(lambda self, codes: self.flat(codes)[:, :1]), "drew 3 codes as (3, 1, 8, 8)"),
    "not square": (Draws(lambda self, codes: self.flat(codes)[..., :5]), "drew 3 codes as (3, 3, 8, 5)"),
    "from -1 to 1": (Draws(lambda self, codes: self.flat(9 * codes) * 2 - 1), "expected RGB from 0 to 1 (where they"),
    "not finite": (Draws(lambda self, codes: self.flat(codes) / 0), "draws values from inf to inf"),
    "no gradient": (Draws(lambda self, codes: self.flat(codes.detach()).detach()), "passes no gradient to its codes"),
    "noise": (
        Draws(lambda self, codes: self.flat(codes + next(RANDOM))),
        "draws the same codes differently each time",
    ),
    "not by itself": (
        Draws(lambda self, codes: self.flat(codes - codes.mean(0))),
        "draws a code differently beside others",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_generator_is_refused(name):
    given, says = BAD[name]
    with pytest.raises(DgnError) as caught:
        own_generator(given)
    assert says in str(caught.value)


def test_weights_have_to_be_finite():
    given = Draws()
    with torch.no_grad():
        given.weight[0, 0] = float("nan")
    with pytest.raises(dgn.WeightsMismatch, match="generator Draws: the tensor 'weight' has NaN"):
        own_generator(given)


def test_the_papers_recipe_keeps_its_decoder():
    generator = own_generator(Draws())
    assert generator.adapted(STANDARD).code_shape == (3,)
    with pytest.raises(DgnError, match=r"generator Draws with preset paper.*give --preset standard or draft"):
        generator.adapted(PRESETS["paper"]["pretrained"])


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"decoder": "drawings"}, "decoder drawings and a generator are given: expected one of them"),
        ({"modes": "untrained"}, "a generator is given, but no target is in the pretrained mode"),
        ({"width": 0.5}, "width 0.5 with a generator, which has a width of its own: leave the width out"),
        ({"generator": "gen.py:build"}, "generator is a str: expected an nn.Module"),
    ],
)
def test_settings_that_contradict_each_other(settings, says):
    given = {"modes": "pretrained", "generator": Draws(), "progress": False, **settings}
    with pytest.raises(DgnError) as caught:
        dgn.render("vgg16-mini", "classes:0", **given)
    assert says in str(caught.value)
