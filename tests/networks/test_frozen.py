"""The frozen network: its responses, and how much of it runs."""

import torch


def test_it_runs_only_as_deep_as_needed(mini):
    cut = mini.cut_behind(("conv2_1",))
    assert sum(isinstance(m, torch.nn.Conv2d) for m in cut.modules()) == 3


def test_responses_are_taken_before_the_relu_and_equal_the_hooked_ones(mini):
    images = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    for layer in ("conv3_3", "fc6", "fc8"):
        response = mini.responses(images, [layer])[layer]
        hooked, _ = mini.scores(images, layer)
        torch.testing.assert_close(response, hooked, rtol=1e-4, atol=1e-4)
        assert response.min() < 0


def test_it_learns_nothing(mini):
    assert not any(p.requires_grad for p in mini.model.parameters())
    assert not mini.model.training
