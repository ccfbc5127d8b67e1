"""What is fastest on a device: measured, kept, chosen and used."""

import json
import logging
from dataclasses import asdict, replace

import pytest
import torch

from cluster.actor import RenderActor
from cluster.context import RunContext
from cluster.plan import RunConfig, make_plan
from dgn import tuning
from dgn.discriminator import layout
from dgn.errors import DgnError
from dgn.recipes import RenderConfig
from dgn.tuning import Timing, Tuned, Variant, device_at_hand, device_model, fastest, has_peaked
from jobs.render import resolve_precision
from tests.conftest import WIDTH

HERE = device_model(device_at_hand())
TUNED = Tuned(
    device=HERE, discriminator="vgg16-mini", preset="standard", precision="float32",
    is_winograd=None if torch.cuda.is_available() else False, batch_size={"untrained": 2, "pretrained": 1},
    timings=(Timing("untrained", "float32", False, 2, 0.5),), is_complete=True,
)  # fmt: skip


@pytest.fixture
def path(tmp_path, monkeypatch):
    monkeypatch.setenv("DGN_TUNED", str(tmp_path / "cache" / "tuned.json"))
    return tuning.stored_at()


@pytest.mark.parametrize(
    ("seconds", "best"),
    [
        ({1: 1.0, 2: 0.9, 4: 0.8}, 4),
        ({1: 1.0, 2: 0.8, 4: 0.9}, 2),
        ({1: 1.0, 2: 0.8, 4: 0.79}, 2),
        ({1: 1.0, 2: 0.8, 4: 0.78}, 4),
        ({1: 1.019, 2: 1.0, 4: 1.0}, 1),
        ({4: 3.0}, 4),
    ],
)
def test_the_smaller_batch_wins_a_tie(seconds, best):
    assert fastest(seconds) == best


@pytest.mark.parametrize(
    ("seconds", "peaked"),
    [
        ({1: 1.0}, False),
        ({1: 1.0, 2: 2.0}, False),
        ({1: 1.0, 2: 2.0, 4: 2.0}, True),
        ({4: 1.0, 1: 1.0, 2: 1.0}, True),
        ({1: 1.0, 2: 0.99, 4: 0.985}, True),
        ({1: 1.0, 2: 1.1, 4: 0.9}, False),
        ({1: 1.0, 2: 0.9, 4: 0.95}, False),
        ({1: 1.0, 2: 0.9, 4: 0.95, 8: 0.95}, True),
    ],
)
def test_climbing_ends_after_two_sizes_that_are_no_better(seconds, peaked):
    assert has_peaked(seconds) is peaked


class Drawn:
    """A device with given seconds per update and target, and room for so many targets; a clock that follows."""

    def __init__(self, monkeypatch, seconds, room=1000):
        self.seconds, self.room, self.now, self.tried = seconds, room, 0.0, []
        monkeypatch.setattr(tuning.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(tuning.time, "perf_counter", lambda: self.now)
        monkeypatch.setattr(tuning, "render_batch", self.render_batch)
        monkeypatch.setattr(tuning, "has_bfloat16", lambda device: True)
        monkeypatch.setattr(tuning, "device_at_hand", lambda: torch.device("cpu"))

    def render_batch(self, targets, config, discriminator, decoder, on_update):
        if len(targets) > self.room:
            raise torch.OutOfMemoryError(f"no room for {len(targets)}")
        variant = Variant(targets[0].mode, config.precision, discriminator.is_winograd, len(targets))
        for update in range(config.recipe(targets[0].mode).num_updates):
            self.now += self.seconds(variant) * len(targets)
            on_update(update, torch.zeros(len(targets)))

    def tune(self, config):
        return tuning.measure("vgg16-mini", config, self.tried.append)


def test_precision_and_form_are_chosen_first_then_batches(monkeypatch, quick_config):
    best_of = {"untrained": 2, "pretrained": 8}

    def seconds(v):
        far = abs(v.batch_size - best_of[v.mode])
        return 0.1 + 0.01 * far + (0.02 if v.precision == "float32" else 0) + (0.01 if v.is_winograd else 0)

    device = Drawn(monkeypatch, seconds)
    tuned = device.tune(quick_config)
    assert (tuned.precision, tuned.is_winograd, tuned.is_complete) == ("bfloat16", False, True)
    assert tuned.batch_size == best_of
    assert {variant.batch_size for variant in device.tried[:4]} == {4}
    assert not any(variant.is_winograd for variant in device.tried[3:])
    assert [v.batch_size for v in device.tried if v.mode == "untrained"] == [4, 4, 4, 1, 2, 8]
    assert len(device.tried) == len(set(device.tried)) == len(tuned.timings)
    assert all(timing.seconds == pytest.approx(seconds(timing)) for timing in tuned.timings)
    assert sum(map(tuned.is_winner, tuned.timings)) == 2


def test_a_hopeless_variant_is_left_after_one_step(monkeypatch, quick_config):
    device = Drawn(monkeypatch, lambda v: 10.0 if v.precision == "float32" else 0.01)
    tuned = device.tune(quick_config)
    assert tuned.precision == "bfloat16"
    assert device.now < 2 * 4 * 10 + 10


def test_time_that_is_up_ends_the_climb(monkeypatch, quick_config):
    device = Drawn(monkeypatch, lambda v: v.batch_size**-0.1)
    tuned = device.tune(quick_config)
    assert not tuned.is_complete
    assert device.now <= tuning.BUDGET_S
    assert tuned.batch_size == {"untrained": 8, "pretrained": 4}


def test_time_that_is_up_ends_a_variant(monkeypatch, quick_config):
    device = Drawn(monkeypatch, lambda v: 13.0)
    tuned = device.tune(quick_config)
    assert [timing.seconds for timing in tuned.timings] == [13.0]
    assert not tuned.is_complete
    assert device.now == 2 * 4 * 13
    assert tuned.batch_size == {}, "with nothing to compare it to the default stays"


def test_memory_ends_the_climb(monkeypatch, quick_config):
    device = Drawn(monkeypatch, lambda v: 0.01 / v.batch_size, room=4)
    tuned = device.tune(quick_config)
    assert tuned.batch_size == {"untrained": 4, "pretrained": 4}
    assert tuned.is_complete
    assert sum(variant.batch_size > 4 for variant in device.tried) == 2
    Drawn(monkeypatch, lambda v: 0.01, room=2)
    with pytest.raises(DgnError, match="no memory for 4 targets at once"):
        tuning.measure("vgg16-mini", quick_config)


def test_entries_of_other_devices_are_kept(path):
    assert tuning.load(path) == {}
    other = replace(TUNED, device="another", precision="bfloat16")
    tuning.check_writable(path)
    tuning.store(other, path)
    tuning.store(replace(TUNED, is_complete=False), path)
    tuning.store(TUNED, path)
    assert tuning.load(path) == {"another": other, HERE: TUNED}
    assert [one.name for one in path.parent.iterdir()] == ["tuned.json"]


def test_where_it_is_stored(monkeypatch):
    monkeypatch.delenv("DGN_TUNED")
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert str(tuning.stored_at()) == "/cache/dgn/tuned.json"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/dev/null")  # what a daemon's may be
    assert str(tuning.stored_at()) == "/dev/null/.cache/dgn/tuned.json"
    assert tuning.load(tuning.stored_at()) == {}


def edited(**changes):
    """The file's text with an entry that somebody changed."""
    fields = {**asdict(TUNED), **changes}
    del fields["device"]
    return json.dumps({"version": 1, "devices": {HERE: fields}})


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("{", "is no file of dgn tune"),
        ("[]", "is no file of dgn tune"),
        ('{"devices": {}}', "is no file of dgn tune"),
        ('{"version": 2, "devices": {}}', "is of version 2, expected 1"),
        ('{"version": 1, "devices": {"cpu": {"precision": "float32"}}}', "is no file of dgn tune"),
        (edited(batch_size={"untrained": 0}), "batch size 0 of mode 'untrained'"),
        (edited(batch_size={"trained": 1}), "batch size 1 of mode 'trained'"),
        (edited(precision="int8"), "precision 'int8'"),
    ],
)  # fmt: skip
def test_a_broken_file_is_one_line_and_nothing_is_written(dgn, path, tmp_path, content, told):
    path.parent.mkdir()
    path.write_text(content)
    run = tmp_path / "run"
    for line in (["tune", "--discriminator", "vgg16-mini"], ["render", run, "--discriminator", "vgg16-mini",
                                                             "--modes", "untrained"]):  # fmt: skip
        code, out, err = dgn(*line)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert told in err
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
    """For real, but for a small G, one view, and steps that are not repeated."""
    quick, measure = RenderConfig.from_preset("draft", width=WIDTH, num_views=1), tuning.measure
    monkeypatch.setattr(tuning, "measure", lambda network, config, show: measure(network, quick, show))
    monkeypatch.setattr(tuning, "ENOUGH_S", 0.0)
    monkeypatch.setattr(tuning, "CPU_SIZES", (1, 2))
    code, out, err = dgn("tune", "--discriminator", "vgg16-mini", "--preset", "draft")
    assert code == 0, err
    assert out.count("fastest") == 2
    assert f"stored in {path}" in out
    tuned = tuning.load(path)[HERE]
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


@pytest.fixture
def actor_with(tmp_path, mini_weights):
    def make(tuned, batch_size=None):
        config = RunConfig(targets=("classes:0-7",), discriminator="vgg16-mini", width=WIDTH, updates=2, views=1)
        plan, render = make_plan(config, layout("vgg16-mini")), config.render_config("float32")
        context = RunContext(str(tmp_path), "r", plan, render, {}, batch_size, {t.device: t for t in tuned})
        return RenderActor(context, mini_weights, None)

    return make


def test_an_actor_follows_the_entry_of_its_device_and_says_so(actor_with, caplog):
    caplog.set_level(logging.INFO, "dgn")
    actor = actor_with([replace(TUNED, device="another", batch_size={"untrained": 7}), TUNED])
    layer = actor.discriminator.layout.class_layer
    assert [actor._auto_batch(mode, layer) for mode in ("untrained", "pretrained")] == [2, 1]
    assert actor.discriminator.is_winograd is (TUNED.is_winograd is not False)
    measured = f"measured with {TUNED.discriminator}, preset {TUNED.preset}"
    [said] = [record.getMessage() for record in caplog.records]
    assert said == f"tuned: {HERE} is fastest with {TUNED} ({measured}); the run wants float32"


def test_an_actor_of_another_device_goes_by_the_defaults(actor_with, caplog):
    caplog.set_level(logging.INFO, "dgn")
    default, other = actor_with([]), actor_with([replace(TUNED, device="another")])
    layer = default.discriminator.layout.class_layer
    assert other.tuned is None
    assert other.discriminator.is_winograd
    if device_at_hand().type == "cpu":
        assert other._auto_batch("untrained", layer) == default._auto_batch("untrained", layer) == 4
    assert not caplog.records


def test_a_mode_that_was_not_measured_goes_by_the_default(actor_with):
    actor = actor_with([replace(TUNED, batch_size={"untrained": 2})])
    default = actor_with([])
    layer = actor.discriminator.layout.class_layer
    assert actor._auto_batch("pretrained", layer) == default._auto_batch("pretrained", layer)


def test_no_more_than_fit_on_a_gpu(actor_with, monkeypatch):
    actor = actor_with([replace(TUNED, batch_size={"untrained": 64})])
    layer = actor.discriminator.layout.class_layer
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10_000, 10_000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 0)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 0)
    actor.device = torch.device("cuda")
    for bytes_per_target, fitting in ((1000, 8), (100, 64)):
        actor.bytes_per_target["untrained", layer] = bytes_per_target
        assert actor._auto_batch("untrained", layer) == fitting


def test_auto_precision_is_the_tuned_one_of_the_device_at_hand():
    has_gpus = torch.cuda.is_available()
    for precision in ("float32", "bfloat16"):
        tuned = {HERE: replace(TUNED, precision=precision)}
        assert resolve_precision("auto", has_gpus, tuned) == precision
        assert resolve_precision("float32", has_gpus, tuned) == "float32"
    default = resolve_precision("auto", has_gpus)
    other = "float32" if default == "bfloat16" else "bfloat16"
    assert resolve_precision("auto", has_gpus, {"another": replace(TUNED, precision=other)}) == default


@pytest.mark.usefixtures("local_ray")
def test_a_run_takes_the_tuned_precision_and_keeps_it(dgn, path, tmp_path):
    tuning.check_writable(path)
    tuning.store(TUNED, path)
    line = ["--targets", "classes:0-1", "--modes", "untrained", "--discriminator", "vgg16-mini", "--width", WIDTH,
            "--updates", 2, "--views", 1]  # fmt: skip
    for name, flags, precision in (("a", [], "float32"), ("b", ["--precision", "bfloat16"], "bfloat16")):
        code, _, err = dgn("render", tmp_path / name, *line, *flags)
        assert code == 0, err
        assert json.loads((tmp_path / name / "run.json").read_text())["config"]["precision"] == precision
    tuning.store(replace(TUNED, precision="bfloat16"), path)
    assert dgn("render", tmp_path / "a", *line)[0] == 0, "a run that was begun keeps its precision"


def test_an_explicit_batch_size_wins(actor_with, monkeypatch):
    asked = []
    monkeypatch.setattr("cluster.actor.render_targets", lambda *args, **kwargs: (asked.append(args[4]), iter([]))[1])
    for batch_size in (None, 3):
        actor = actor_with([TUNED], batch_size)
        actor.render(0, "attempt")
    assert asked == [2, 3]


def test_a_tuned_batch_that_does_not_fit_is_halved(actor_with, monkeypatch):
    import dgn.render

    render_batch, sizes = dgn.render.render_batch, []

    def cramped(targets, *others):
        sizes.append(len(targets))
        if len(targets) > 2:
            raise torch.OutOfMemoryError(f"no room for {len(targets)} targets")
        return render_batch(targets, *others)

    monkeypatch.setattr(dgn.render, "render_batch", cramped)
    actor = actor_with([replace(TUNED, batch_size={"untrained": 8})])
    actor.render(0, "attempt")
    assert sizes == [8, 4, 2, 2, 2, 2]
    assert list(actor.largest_batch.values()) == [2]
