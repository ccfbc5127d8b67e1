"""run.json and the commit of a shard: the first one counts, and settings that would make other pictures are refused."""

import copy

import pytest

from dgn.errors import PlanMismatch, StoreError
from dgn.networks.registry import network_named
from dgn.runs.config import RunConfig
from dgn.runs.info import WITHOUT_EFFECT, differences
from dgn.runs.layout import image_key, metadata_key
from dgn.runs.plan import fingerprint, make_plan
from dgn.runs.run import Run
from dgn.runs.schema import parse
from dgn.runs.stores.local import LocalStore
from dgn.targets import MODES


@pytest.fixture
def run(tmp_path):
    return Run(LocalStore(str(tmp_path)))


def identity(**settings):
    """The fingerprint of a run with these settings, and the settings."""
    config = RunConfig(discriminator="vgg16-mini", targets=("classes:0-3",), **settings)
    plan = make_plan(config, network_named("vgg16-mini").layers)
    return fingerprint(plan, config.render_config("float32"), network_named("vgg16-mini"), "a" * 64, None), config


def start(run, fingerprint, config):
    return run.start(fingerprint, config, num_targets=4, num_shards=1)


def test_a_run_with_other_settings_is_refused(run):
    ours, config = identity()
    first = start(run, ours, config)
    assert start(run, ours, config) == first
    theirs, other = identity(preset="draft")
    with pytest.raises(PlanMismatch, match=r"render\.preset is standard there, draft here \(and \d+ more\)"):
        start(run, theirs, other)
    assert first.run_config == config


def put(content, path, value):
    """Sets a leaf of nested dictionaries, `a.b.c`."""
    *above, last = path.split(".")
    for name in above:
        content = content[name]
    content[last] = value


@pytest.mark.parametrize("name", sorted(WITHOUT_EFFECT))
def test_what_changes_no_picture_does_not_refuse_a_run(run, name):
    """Another release, and settings that earlier versions wrote."""
    ours, config = identity()
    earlier = copy.deepcopy(ours)
    put(earlier, name, "as it was")
    first = start(run, earlier, config)
    assert start(run, ours, config) == first


def test_a_release_that_draws_otherwise_refuses_a_run(run, monkeypatch):
    ours, config = identity()
    earlier = {name: value for name, value in ours.items() if name != "method_version"} | {"dgn_version": "0.1.0"}
    first = start(run, earlier, config)
    assert start(run, ours | {"dgn_version": "0.9.9"}, config) == first
    monkeypatch.setattr("dgn.runs.plan.METHOD_VERSION", 2)
    later, _ = identity()
    with pytest.raises(
        PlanMismatch, match=r"begun by dgn 0\.1\.0, which draws other pictures \(method 1 there, 2 here\): continue it"
    ):
        start(run, later, config)


@pytest.mark.parametrize("name", ["render.untrained.noise_of_another_kind", "render.noise", "noise"])
def test_any_other_setting_that_only_one_of_them_has_refuses_a_run(run, name):
    ours, config = identity()
    earlier = copy.deepcopy(ours)
    put(earlier, name, "as it was")
    start(run, earlier, config)
    with pytest.raises(PlanMismatch, match=rf"{name} is as it was there, None here"):
        start(run, ours, config)


def test_other_labels_refuse_a_run(run):
    own, config = identity()
    given, others = (own | {"labels_sha256": letter * 64} for letter in "ab")
    first = start(run, given, config)
    assert start(run, given, config) == first
    for wrong in (others, own):
        with pytest.raises(
            PlanMismatch, match="settings: its labels are not those that it was started with; "
        ) as caught:
            start(run, wrong, config)
        assert "\n" not in str(caught.value)


def test_a_run_from_before_labels_were_written_is_continued_with_its_own(run):
    ours, config = identity()
    earlier = {name: value for name, value in ours.items() if name != "labels_sha256"}
    first = start(run, earlier, config)
    assert start(run, ours, config) == first
    assert start(run, ours | {"labels_sha256": "a" * 64}, config) == first


def test_a_run_from_before_a_number_of_the_method_existed_had_its_default(run):
    ours, config = identity(preset="paper")
    earlier = copy.deepcopy(ours)
    for mode in MODES:
        for name in ("last_rate_share", "half_share"):
            assert earlier["render"][mode].pop(name) is not None
        assert earlier["render"][mode]["moves"].pop("shift") is not None
    first = start(run, earlier, config)
    assert start(run, ours, config) == first
    other = copy.deepcopy(ours)
    put(other, "render.untrained.half_share", 0.5)
    with pytest.raises(PlanMismatch, match=r"render\.untrained\.half_share is 0\.0 there, 0\.5 here; "):
        start(run, other, config)


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("render.untrained.num_updates", "many", "untrained.num_updates: Input should be a valid integer"),
        ("render.untrained.min_rise", 1.5, "smallest rise 1.5"),
        ("render", {"preset": "paper", "untrained": {}}, "lacks pretrained"),
        ("render", 3, "Input should be"),
    ],
)
def test_numbers_of_the_method_that_cannot_be_are_refused_in_one_line(run, name, value, says):
    ours, config = identity()
    put(ours, name, value)
    start(run, ours, config)
    with pytest.raises(StoreError, match=r"run\.json of run .* does not fit this dgn: ") as caught:
        start(run, ours, config)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert run.info().network["size"] == 224, "which verify and judge need alone"


def test_every_setting_of_the_fingerprint_counts():
    ours, _ = identity()
    leaves = list(differences(ours, {}))
    assert {name for name, _, _ in leaves} == {name for name in ours if ours[name] is not None} - {"dgn_version"}
    for name in ("weights_sha256", "render.preset", "render.untrained.width", "render.pretrained.width"):
        theirs = copy.deepcopy(ours)
        put(theirs, name, "another")
        assert [one[0] for one in differences(theirs, ours)] == [name]


def test_a_folder_without_a_run_is_an_error(run):
    with pytest.raises(StoreError, match=r"there is no run\.json; dgn render starts a run"):
        run.info()
    run.store.write("run.json", b"{}")
    with pytest.raises(StoreError, match="schema version None"):
        run.info()
    run.store.write("run.json", b"no json")
    with pytest.raises(StoreError, match="is not JSON"):
        run.info()


def row(attempt, target_id="fc8-00000-untrained-s0", shard=0):
    return {
        "target_id": target_id,
        "attempt": attempt,
        "shard": shard,
        "file_name": image_key(shard, attempt, target_id),
    }


def test_the_first_commit_wins_and_the_loser_cleans_up(run):
    first, second = row("aaaaaaaa"), row("bbbbbbbb")
    for one in (first, second):
        run.store.write(one["file_name"], b"png")
    run.commit(0, "aaaaaaaa", [first], {"run_id": "r"})
    run.commit(0, "aaaaaaaa", [first], {"run_id": "r"})  # its answer was lost: it is still the winner
    assert sorted(run.store.list("images")) == sorted([first["file_name"], second["file_name"]])
    run.commit(0, "bbbbbbbb", [second], {"run_id": "r"})
    assert list(run.store.list("images")) == [first["file_name"]]
    assert parse(run.store.read(metadata_key(0)), ["attempt"]).to_pylist() == [{"attempt": "aaaaaaaa"}]
    assert 0 in run.committed(3)
    assert list(run.committed(3).missing()) == [1, 2]


def test_foreign_files_among_the_commits_are_left_alone(run):
    for name in ("notes.txt", "x.parquet", "000009.parquet", ".dgn-half"):
        run.store.write(f"metadata/{name}", b"")
    run.store.write(metadata_key(1), b"")
    assert list(run.committed(3).missing()) == [0, 2]
