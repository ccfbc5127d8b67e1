"""`dgn tune`: what it measures, prints and stores."""

import json
from dataclasses import asdict

import pytest
import torch

from dgn.cost import tuning
from dgn.cost.tuned import load_tuned, tuned_path
from dgn.engine.cpu import CpuEngine
from dgn.method.recipes import RenderConfig
from tests.conftest import NARROW
from tests.helpers.tuned import HERE, TUNED


@pytest.fixture
def path(tmp_path, monkeypatch):
    monkeypatch.setenv("DGN_TUNED", str(tmp_path / "cache" / "tuned.json"))
    return tuned_path()


def edited(**changes):
    """The file's text with an entry that somebody changed."""
    fields = {**asdict(TUNED), **changes}
    del fields["device"]
    return json.dumps({"version": 1, "devices": {HERE: fields}})


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "was not written by dgn tune"),
        ("[]", "was not written by dgn tune"),
        ('{"devices": {}}', "was not written by dgn tune"),
        ('{"version": 2, "devices": {}}', "has version 2, expected 1"),
        ('{"version": 1, "devices": {"cpu": {"precision": "float32"}}}', "was not written by dgn tune"),
        (edited(batch_size={"untrained": 0}), "batch size 0 of mode 'untrained'"),
        (edited(batch_size={"trained": 1}), "batch size 1 of mode 'trained'"),
        (edited(precision="int8"), "precision 'int8'"),
    ],
)  # fmt: skip
def test_a_broken_file_is_one_line_and_nothing_is_written(dgn, path, tmp_path, content, says):
    path.parent.mkdir()
    path.write_text(content)
    run = tmp_path / "run"
    for line in (["tune", "--discriminator", "vgg16-mini"], ["render", run, "--discriminator", "vgg16-mini",
                                                             "--modes", "untrained"]):  # fmt: skip
        code, out, err = dgn(*line)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert says in err
        assert "delete it" in err
    assert not run.exists()
    assert path.read_text() == content


def test_bad_input_is_one_line_before_anything_is_measured(dgn, path, monkeypatch):
    assert dgn("tune", "--discriminator", "vgg61")[0] == 2
    assert dgn("tune", "--discriminator", "vgg16-mini", "--preset", "best")[0] == 2
    assert not path.parent.exists()
    monkeypatch.setenv("DGN_TUNED", "/dev/null/tuned.json")
    code, _, err = dgn("tune", "--discriminator", "vgg16-mini")
    assert (code, err.count("\n")) == (2, 1)
    assert "cannot write /dev/null/tuned.json" in err


@pytest.fixture
def one_thread():
    """Threads that wait for each other take half a minute where other tests run on the same cores."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


@pytest.mark.usefixtures("one_thread")
def test_the_command_measures_and_stores(dgn, path, monkeypatch):
    """For real, but with a small generator, one view, small batches, and steps that are not repeated."""
    quick, measure = RenderConfig.from_preset("draft", width=NARROW, num_views=1), tuning.measure
    monkeypatch.setattr(tuning, "measure", lambda network, config, show: measure(network, quick, show))
    monkeypatch.setattr(tuning, "ENOUGH_S", 0.0)
    monkeypatch.setattr(CpuEngine, "usual_batch_size", 1)
    monkeypatch.setattr(CpuEngine, "tuning_batch_sizes", (1, 2))
    code, out, err = dgn("tune", "--discriminator", "vgg16-mini", "--preset", "draft")
    assert code == 0, err
    assert out.count("fastest") == 2
    assert f"stored in {path}" in out
    tuned = load_tuned(path)[HERE]
    assert tuned.is_complete
    assert set(tuned.batch_size) == {"untrained", "pretrained"}
    assert len(tuned.timings) >= 4
    assert all(0 < timing.seconds < 10 for timing in tuned.timings)
    assert f"{HERE}, vgg16-mini, preset draft: {tuned}" in out
    assert f"tuning of {HERE}: {tuned}" in dgn("doctor", "--discriminator", "vgg16-mini")[1]


def test_json(dgn, path, monkeypatch):
    monkeypatch.setattr(tuning, "measure", lambda network, config, show: TUNED)
    content = json.loads(dgn("tune", "--discriminator", "vgg16-mini", "--json")[1])
    assert content["stored_at"] == str(path)
    assert content["batch_size"] == TUNED.batch_size
