"""Real ImageNet classifiers, given by DGN_WEIGHTS: the standard preset converges on each without tuning."""

import pytest

from dgn.method.loop import render_batch
from dgn.method.recipes import RenderConfig
from dgn.networks.frozen import FrozenNetwork
from dgn.networks.weights import load_weights
from dgn.pictures.codec import encode_png
from dgn.pictures.scoring import read_pictures, score, score_results
from dgn.targets import Target, WeightedUnit

pytestmark = pytest.mark.real_weights


@pytest.mark.parametrize("network", ["squeezenet1_0", "mobilenet_v2"])
def test_a_mosque_in_a_third_of_the_updates(network, real_weights):
    """Class 668 is first on the saved PNG, and the PNG keeps what was optimised. The preset itself takes 240 updates of
    four views each, and a generator of twice the width."""
    classifier = FrozenNetwork(load_weights(network, real_weights / f"{network}-imagenet.safetensors"))
    config = RenderConfig.from_preset("standard", "float32", num_updates=80, num_views=1, width=0.25)
    target = Target((WeightedUnit(classifier.layers.class_layer, 668),), "untrained", 0)
    [scored] = score_results(render_batch([target], config, classifier), classifier)
    [scores] = score(read_pictures([encode_png(scored.picture_HW3)], 224), [target], classifier)
    assert scores == scored.scores
    assert scores.rank == 1
    assert scores.top5[0].label == "mosque"
    assert scores.activation >= 0.95 * scored.unrounded_activation
    assert (scored.status, scored.reason) == ("ok", None)
