"""Moved views of a picture, between the generator and the classifier."""

import math

import torch

from dgn.method.moves import affine_maps, colour_maps, draw_uniforms, move, recolour
from dgn.method.recipes import Moves


def drawn(moves, num_views, seed=0):
    return affine_maps(moves, draw_uniforms(moves, num_views, torch.Generator().manual_seed(seed)))


def test_no_move_is_the_identity():
    image = torch.rand(2, 3, 32, 32)
    still = drawn(Moves(1, 1, 0, 0), 3)
    views = move(image, torch.stack([still, still]))
    torch.testing.assert_close(views, image.repeat_interleave(3, 0), atol=1e-5, rtol=0)


def test_moves_stay_in_their_range_and_come_from_the_stream():
    moves = Moves(scale_min=0.8, scale_max=1.2, turn_deg=12, shift=0.15)
    maps = drawn(moves, 500)
    assert torch.equal(maps, drawn(moves, 500))
    zoom = 1 / maps[:, :, :2].det().sqrt()
    turn = torch.rad2deg(torch.atan2(maps[:, 1, 0], maps[:, 0, 0]))
    assert 0.8 <= zoom.min() < 0.85 < 1.15 < zoom.max() <= 1.2
    assert -12 <= turn.min() < -11 < 11 < turn.max() <= 12
    assert 0.28 < maps[:, :, 2].abs().max() <= 0.3, "a share of 0.15 of a side that spans 2"


def test_maps_of_several_targets_are_each_targets_own():
    uniforms = torch.stack([draw_uniforms(Moves(), 4, torch.Generator().manual_seed(seed)) for seed in (0, 1)])
    together = affine_maps(Moves(), uniforms)
    assert together.shape == (2, 4, 2, 3)
    assert torch.equal(together, torch.stack([affine_maps(Moves(), one) for one in uniforms]))


def test_a_shift_moves_the_picture_by_its_share_of_the_side():
    image = torch.zeros(1, 3, 100, 100)
    image[..., 50, 50] = 1
    shift = torch.tensor([[[[1.0, 0, 0.2], [0, 1, 0]]]])
    assert move(image, shift)[0, 0].argmax() == 50 * 100 + 40


def test_a_views_gradient_reaches_every_pixel():
    image = torch.rand(1, 3, 64, 64, requires_grad=True)
    move(image, drawn(Moves(), 4, seed=1)[None]).sum().backward()
    assert (image.grad > 0).float().mean() > 0.9


def test_colours_stay_in_their_range_and_leave_the_maps_as_they_are():
    moves = Moves(colour_gain=0.5, colour_offset=0.3)
    uniforms = draw_uniforms(moves, 500, torch.Generator().manual_seed(0))
    gain, offset = colour_maps(moves, uniforms).unbind(-2)
    assert math.exp(-0.5) <= gain.min() < 0.62
    assert 1.63 < gain.max() <= math.exp(0.5)
    assert -0.3 <= offset.min() < -0.29
    assert 0.29 < offset.max() <= 0.3
    assert torch.equal(affine_maps(moves, uniforms), affine_maps(Moves(), uniforms[:, :4]))
    assert abs(torch.corrcoef(torch.cat([gain, offset], 1).T) - torch.eye(6)).max() < 0.15, "each of its own"


def test_views_are_recoloured_about_the_middle_of_the_range():
    views = torch.rand(4, 3, 8, 8, dtype=torch.float64)  # two targets, two views each
    colours = torch.rand(2, 2, 2, 3, dtype=torch.float64)
    recoloured = recolour(views, colours)
    for n in range(4):
        for channel in range(3):
            gain, offset = colours[n // 2, n % 2, :, channel]
            expected = (views[n, channel] - 0.5) * gain + 0.5 + offset
            torch.testing.assert_close(recoloured[n, channel], expected)


def test_recipes_without_colours_draw_the_random_numbers_that_they_always_drew():
    def stream():
        return torch.Generator().manual_seed(3)

    assert torch.equal(draw_uniforms(Moves(), 4, stream()), torch.rand(4, 4, generator=stream()))
