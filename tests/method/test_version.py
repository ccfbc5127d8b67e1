"""The same settings draw the same pictures from release to release, or METHOD_VERSION says that they do not."""

import pytest

from dgn.method.decoder import random_decoder
from dgn.method.loop import render_batch
from dgn.method.recipes import METHOD_VERSION, RenderConfig
from tests.conftest import NARROW
from tests.helpers.targets import class_targets

# Mean and standard deviation of pictures in float64, after five updates. If these have to change, runs that were begun
# before cannot be continued: raise METHOD_VERSION.
DRAWN_BY_VERSION_1 = {
    ("standard", "untrained"): (0.4925248457, 0.1945403889),
    ("standard", "pretrained"): (0.4489890785, 0.0326344441),
    ("paper", "untrained"): (0.4406853037, 0.1946807835),
    ("paper", "pretrained"): (0.4419761199, 0.2304446569),
}


@pytest.mark.parametrize(("preset", "mode"), DRAWN_BY_VERSION_1)
def test_the_method_draws_what_its_version_drew(preset, mode, mini_float64):
    assert METHOD_VERSION == 1
    config = RenderConfig.from_preset(preset, "float64", width=NARROW, num_updates=5)
    decoder = random_decoder(config.pretrained) if mode == "pretrained" else None
    [result] = render_batch(class_targets([3], mode), config, mini_float64, decoder)
    picture = result.picture_3HW.double()
    assert (picture.mean().item(), picture.std().item()) == pytest.approx(DRAWN_BY_VERSION_1[preset, mode], rel=1e-6)
