"""Which filters speak for a class, against exact contributions and a plain loop."""

import pytest
import torch
from torch import nn

from dgn.networks.weights import filled
from dgn.pictures.attribution import by_gradient, shortlist, silenced
from tests.helpers.own_networks import PX, Own, Plain, conv, frozen, pictures, seeded


@pytest.fixture(scope="module")
def plain():
    """Its class's value is linear in the means of its six filters, so what each adds is known exactly."""
    return frozen(seeded(Plain()), dtype=torch.float64)


def exact(network, image_3HW, class_):
    response = network.all_scores(image_3HW[None], ["norm"])[0]["norm"][0].double()
    return response.clamp_min(0).mean((1, 2)) * network.model.fc.weight[class_].double()


@pytest.mark.parametrize("shares", [(1.0,), (0.5,), (0.25, 0.5, 0.75, 1.0)])
def test_gradient_times_activation_of_a_linear_head_is_exact(plain, shares):
    image_3HW = pictures(1)[0]
    wanted_U = exact(plain, image_3HW, 2)
    assert wanted_U.abs().max() > 0.01
    torch.testing.assert_close(by_gradient(plain, image_3HW, "norm", 2, shares), wanted_U, rtol=1e-5, atol=1e-7)


def test_silencing_before_a_linear_head_is_exact(plain):
    image_3HW = pictures(1)[0]
    values_NC = silenced(plain, image_3HW, "norm", [(), *((unit,) for unit in range(6)), (1, 4)])
    wanted_U = exact(plain, image_3HW, 2)
    falls = values_NC[0, 2] - values_NC[1:, 2]
    torch.testing.assert_close(falls[:6], wanted_U, rtol=1e-5, atol=1e-7)
    assert falls[6].item() == pytest.approx((wanted_U[1] + wanted_U[4]).item(), rel=1e-5)


def test_the_shortlist_is_of_the_largest(plain):
    image_3HW = pictures(1)[0]
    order = exact(plain, image_3HW, 1).argsort(descending=True).tolist()
    assert shortlist(plain, image_3HW, "norm", 1, 3) == order[:3]
    assert shortlist(plain, image_3HW, "norm", 1, 99) == order


def test_silencing_against_a_plain_loop(mini_float64, mini_weights):
    """The output of the ReLU behind a convolution is set to zero by hand, a filter at a time."""
    image_3HW = torch.rand(3, 224, 224, generator=torch.Generator().manual_seed(3))
    network, units = mini_weights.network, (0, 5, 11, 40)
    model = filled(network, mini_weights.state).eval().double()
    name, _ = network.layers.module_of("conv4_1")
    folder, _, number = name.rpartition(".")
    relu = model.get_submodule(f"{folder}.{int(number) + 1}")
    assert isinstance(relu, nn.ReLU)
    means, stds = (torch.tensor(numbers).double().reshape(-1, 1, 1) for numbers in (network.means, network.stds))
    seen = ((image_3HW.double() * network.value_range - means) / stds)[None]
    wanted = []
    for unit in units:

        def silence(_module, _inputs, output, unit=unit):
            output = output.clone()
            output[:, unit] = 0
            return output

        handle = relu.register_forward_hook(silence)
        with torch.no_grad():
            wanted.append(model(seen)[0])
        handle.remove()
    found_NC = silenced(mini_float64, image_3HW, "conv4_1", [(unit,) for unit in units])
    torch.testing.assert_close(found_NC, torch.stack(wanted), rtol=1e-5, atol=1e-5)
    whole_NC = silenced(mini_float64, image_3HW, "conv4_1", [()])
    assert ((found_NC - whole_NC).abs().amax(1) > 1e-3).any()


def test_filters_above_the_limit_of_a_relu6():
    """They have no gradient at their whole activation, so the gradients are taken below it too."""
    model = seeded(Own(lambda self, x: self.fc(self.relu(self.conv(x)).mean((2, 3))),
                       conv=conv(), relu=nn.ReLU6(), fc=nn.Linear(4, 2)))  # fmt: skip
    with torch.no_grad():
        model.conv.weight.zero_()
        model.conv.bias.copy_(torch.tensor([12.0, 1.0, 1.0, 1.0]))
        model.fc.weight.copy_(torch.tensor([[1.0, 0.5, 0.2, 0.1], [0, 0, 0, 0]]))
    network, image_3HW = frozen(model), pictures(1)[0]
    assert by_gradient(network, image_3HW, "conv", 0, (1.0,))[0] == 0
    assert shortlist(network, image_3HW, "conv", 0, 1) == [0]
    values_NC = silenced(network, image_3HW, "conv", [(), (0,), (1,)])
    assert (values_NC[0, 0] - values_NC[1:, 0]).tolist() == pytest.approx([6, 0.5])


def test_pictures_that_change_each_other_are_seen_one_by_one():
    """With the batch's own statistics, a silenced filter must not change what another set gives."""
    norm = nn.BatchNorm2d(4, track_running_stats=False)
    model = Own(lambda self, x: self.fc(self.norm(self.conv(x)).relu().mean((2, 3))),
                conv=conv(), norm=norm, fc=nn.Linear(4, 2))  # fmt: skip
    network, image_3HW = frozen(seeded(model)), pictures(1, PX)[0]
    assert network.is_coupled
    together = silenced(network, image_3HW, "conv", [(), (0,), (1, 2)])
    alone = torch.cat([silenced(network, image_3HW, "conv", [one]) for one in ((), (0,), (1, 2))])
    assert torch.equal(together, alone)
    assert not torch.equal(together[0], together[1])
    torch.testing.assert_close(
        by_gradient(network, image_3HW, "norm", 0, (1.0, 1.0)), by_gradient(network, image_3HW, "norm", 0, (1.0,))
    )
