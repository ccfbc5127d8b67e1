"""The settings of a run, as a YAML file or as flags give them."""

import pytest

from dgn.errors import DgnError
from dgn.runs.config import RunConfig
from dgn.runs.decoders import load_decoder
from dgn.runs.validation import validated


@pytest.mark.parametrize(
    ("given", "targets"),
    [
        ("all", ("all",)),
        ("classes:polka dots", ("classes:polka dots",)),
        (["classes:1", "filters"], ("classes:1", "filters")),
    ],
)
def test_one_target_or_several(given, targets):
    assert validated(RunConfig, {"targets": given}).targets == targets


@pytest.mark.parametrize("given", ["untrained,pretrained", "untrained, pretrained", ["untrained", "pretrained"]])
def test_modes_as_text_or_as_a_list(given):
    assert validated(RunConfig, {"modes": given}).modes == ("untrained", "pretrained")


@pytest.mark.parametrize(
    ("given", "workers", "workers_range"),
    [("3", "3", (3, 3)), (3, "3", (3, 3)), ("0-8", "0-8", (0, 8)), (None, None, None)],
)
def test_workers(given, workers, workers_range):
    config = validated(RunConfig, {"workers": given})
    assert (config.workers, config.workers_range) == (workers, workers_range)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"workers": "8-2"}, "setting workers: expected MIN-MAX with MIN at most MAX, got '8-2'"),
        ({"workers": "0"}, "setting workers: "),
        ({"seed": "-1"}, "setting seed: expected at least 0, got '-1'"),
        ({"seed": 1.5}, "setting seed: expected an integer, got 1.5"),
        ({"batch_size": 0}, "setting batch_size: expected 'auto' or at least 1, got 0"),
        ({"width": "5"}, "setting width: expected at most 4, got '5'"),
        ({"stop_early": 1}, "setting stop_early: expected less than 1, got 1"),
        ({"gpus_per_worker": "many"}, "setting gpus_per_worker: expected a number, got 'many'"),
        ({"targets": 4}, "setting targets: expected a text or a list of texts, got 4"),
        ({"weights": 4}, "setting weights: expected text, got 4"),
        ({"precision": "float16"}, "setting precision: expected 'auto', 'float32' or 'bfloat16', got 'float16'"),
        ({"targetz": "all"}, "unknown setting 'targetz': expected one of targets, modes, "),
    ],
)
def test_the_first_wrong_setting_is_named(given, says):
    with pytest.raises(DgnError) as caught:
        validated(RunConfig, given)
    assert str(caught.value).startswith(says)


def test_settings_change_the_preset():
    config = validated(
        RunConfig, {"preset": "draft", "updates": "120", "views": "0", "width": "0.2", "stop_early": 0.1}
    )
    render = config.render_config("float32")
    assert (render.preset, render.untrained.num_updates, render.untrained.width) == ("draft", 120, 0.2)
    decoder = load_decoder("drawings")
    assert config.render_config("float32", decoder).pretrained.width == decoder.width == 0.25
