"""Real ImageNet classifiers, given by DGN_WEIGHTS: the standard preset converges on each without tuning."""

import pytest

from dgn import picture
from dgn.discriminator import Discriminator, load_weights
from dgn.recipes import RenderConfig
from dgn.render import render_batch
from dgn.targets import Target, WeightedUnit

pytestmark = pytest.mark.real_weights


@pytest.mark.parametrize("network", ["squeezenet1_0", "mobilenet_v2"])
def test_a_mosque_in_a_third_of_the_updates(network, real_weights):
    """Class 668 is first on the saved PNG and the PNG keeps what was optimised; a full picture takes 240 updates."""
    weights = load_weights(network, real_weights / f"{network}-imagenet.safetensors")
    discriminator = Discriminator(weights)
    config = RenderConfig.from_preset("standard", "float32", num_updates=80, num_views=2)
    target = Target((WeightedUnit(discriminator.layout.class_layer, 668),), "untrained", 0)
    result = render_batch([target], config, discriminator)[0]
    scores = picture.rescore([picture.encode_png(result.picture_3HW)], [target], discriminator)[0]
    unrounded = picture.score(result.picture_3HW[None], [target], discriminator)[0]
    assert scores.rank == 1
    assert scores.top5[0].label == "mosque"
    assert scores.activation >= 0.95 * unrounded.activation
    assert picture.judge(result, scores, discriminator.layout.class_layer) == ("ok", None)
