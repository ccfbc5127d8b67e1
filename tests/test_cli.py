"""Commands as people type them: what works, and one line with exit code 2 for what cannot."""

import csv
import io
import json
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

from dgn.decoder import serialise
from jobs.render import load_config
from tests.conftest import WIDTH

QUICK = [
    "--discriminator",
    "vgg16-mini",
    "--width",
    str(WIDTH),
    "--updates",
    "3",
    "--views",
    "1",
    "--precision",
    "float32",
]


pytestmark = pytest.mark.usefixtures("local_ray")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A small run: a class, a mix, and two filters."""
    folder = tmp_path_factory.mktemp("run") / "r"
    config = load_config(
        None,
        {
            "targets": ["classes:heart", "mix:classes:1+2", "filters:conv1_1:0-1"], "discriminator": "vgg16-mini",
            "width": WIDTH, "updates": 3, "views": 1, "precision": "float32", "shard_size": 2,
        },
    )  # fmt: skip
    from jobs.render import render_command

    render_command(str(folder), config, dry_run=False)
    return folder


def test_rows_hold_everything_that_is_documented(finished):
    import pyarrow.parquet as pq

    from cluster.rows import SCHEMA

    tables = [pq.read_table(path) for path in sorted((finished / "metadata").iterdir())]
    rows = [row for table in tables for row in table.to_pylist()]
    assert [r["target_id"] for r in rows] == [
        "conv1_1-00000-untrained-s0", "conv1_1-00001-untrained-s0", "fc8-00007-untrained-s0", "fc8-1_2-untrained-s0",
    ]  # fmt: skip
    heart = rows[2]
    filled = {name for name, value in heart.items() if value is not None}
    assert filled >= set(SCHEMA.names) - {"reason"}
    assert (heart["label"], heart["discriminator"], heart["updates"]) == ("heart", "vgg16-mini", 3)
    assert len(heart["top5"]) == 5
    assert rows[3]["unit"] is None
    assert rows[3]["label"] == "ring + triangle"
    described = json.loads(tables[0].schema.metadata[b"dgn"])
    assert described["weights_sha256"]
    assert described["render"]["untrained"]["width"] == WIDTH


def test_the_same_line_again_and_resume_have_nothing_to_do(finished, dgn):
    code, out, _ = dgn("resume", finished)
    assert code == 0
    assert "4 of 4 pictures" in out
    assert "nothing was left to do" in out


def test_status(finished, dgn):
    code, out, _ = dgn("status", finished, "--json")
    content = json.loads(out)
    assert code == 0
    assert (content["pictures_done"], content["pictures"], content["is_whole"]) == (4, 4, True)
    assert dgn("status", finished, "--watch")[1].count("4 of 4 pictures") == 1


def test_query_in_every_format(finished, dgn):
    everything = json.loads(dgn("query", finished, "--format", "json")[1])
    activations = [row["activation"] for row in everything]
    assert activations == sorted(activations, reverse=True)
    assert len(everything) == 4
    top = list(
        csv.DictReader(io.StringIO(dgn("query", finished, "--layer", "conv1_1", "--top", 1, "--format", "csv")[1]))
    )
    assert [row["layer"] for row in top] == ["conv1_1"]
    limit = activations[1]
    above = json.loads(dgn("query", finished, "--min-activation", limit, "--mode", "untrained", "--format", "json")[1])
    assert len(above) == 2
    code, out, _ = dgn("query", finished)
    assert code == 0
    assert "4 rows" in out
    assert "heart" in out


def test_verify_finds_what_is_broken(finished, dgn, tmp_path):
    import shutil

    code, out, _ = dgn("verify", finished)
    assert (code, out.strip()) == (0, "4 targets expected, 4 found, 0 twice or stray, 4 scored again, 0 problems")
    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    pictures = sorted((copy / "images").rglob("*.png"))
    pictures[0].write_bytes(pictures[0].read_bytes()[:-1])
    pictures[1].unlink()
    (copy / "metadata" / "000001.parquet").unlink()
    code, out, err = dgn("verify", copy)
    assert code == 1
    assert "sha256 differs" in out
    assert "is missing" in out
    assert "shard 000001 is missing (2 targets)" in out
    assert "is not whole" in err


def test_verify_counts_by_the_target_list_not_by_an_edited_file(finished, dgn, tmp_path):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    content = json.loads((copy / "run.json").read_text())
    (copy / "run.json").write_text(json.dumps({**content, "num_targets": 6}))
    code, _, err = dgn("verify", copy)
    assert (code, err.count("\n")) == (2, 1)
    assert "it was edited" in err


def test_gc_spares_what_a_driver_is_making(finished, dgn, tmp_path, monkeypatch):
    import shutil

    from cluster import lease
    from cluster.lease import Lease
    from cluster.storage import open_store

    monkeypatch.setattr(lease, "BEAT_S", 0.2)
    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    with Lease(open_store(str(copy))):
        while not (copy / "lease.json").exists():
            time.sleep(0.01)
        code, _, err = dgn("gc", copy, "--uncommitted")
    assert (code, err.count("\n")) == (2, 1)
    assert "a driver is at work" in err
    monkeypatch.setattr(lease, "QUIET_S", 1.0)
    (copy / "lease.json").write_text('{"driver": "killed", "beats": 7}')
    assert dgn("gc", copy, "--uncommitted")[0] == 0


def test_an_empty_run_is_refused(dgn):
    assert dgn("status", "") == (2, "", "dgn: RUN is empty: expected a folder or s3://bucket/prefix\n")


def test_gc_deletes_only_what_no_row_names(finished, dgn, tmp_path):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    stray = copy / "images" / "000000" / "deadbeef" / "x.png"
    underway = copy / "images" / "000007" / "deadbeef" / "x.png"
    for path in (stray, underway):
        path.parent.mkdir(parents=True)
        path.touch()
    assert "1 pictures would be deleted" in dgn("gc", copy, "--dry-run")[1]
    assert stray.exists()
    assert dgn("gc", copy)[1] == "1 pictures deleted, 5 pictures kept\n"
    assert not stray.exists()
    assert dgn("gc", copy, "--uncommitted")[1] == "1 pictures and 0 unfinished files deleted, 4 pictures kept\n"
    assert dgn("verify", copy)[0] == 0


def test_failed_lists_what_is_not_ok(finished, dgn):
    code, out, _ = dgn("failed", finished)
    assert code == 0
    assert "0 shards missing" in out


def test_sheet(finished, dgn, tmp_path):
    assert dgn("sheet", finished, tmp_path / "sheet.png", "--columns", 2)[0] == 0
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (466, 2 * (224 + 3 * 18 + 6) + 6)
    assert dgn("sheet", finished, tmp_path / "none.png", "--layer", "fc7")[0] == 2


def test_info_counts(dgn):
    content = json.loads(dgn("info", "--preset", "paper", "--json")[1])
    assert content["modes"]["untrained"]["num_trainable"] == 5_240_841
    assert content["modes"]["pretrained"]["num_trainable"] == 3_200
    assert content["targets_all"] == 6224
    assert content["targets_all_in_both_modes"] == 10_448
    assert content["layers"]["conv5_3"] == 512
    # method: VGG-16 forward 15.5 GMAC and again to the input; G with exact phases costs less than the plain 60 GFLOP.
    assert content["modes"]["untrained"]["discriminator_ops_per_view"] == pytest.approx(4 * 15.5e9, rel=0.01)
    assert 40e9 < content["modes"]["untrained"]["generator_ops_per_update"] < 60e9
    assert "conv1_1 8" in dgn("info", "--discriminator", "vgg16-mini", "--layers")[1]
    assert "vgg16-mini-b" in dgn("info", "--networks")[1]
    assert "5,240,841 trainable variables" in dgn("info", "--preset", "paper")[1]


def test_dry_run_prints_the_plan_and_writes_nothing(dgn, tmp_path):
    code, out, _ = dgn("render", tmp_path / "r", "--targets", "all", "--discriminator", "vgg16-mini", "--dry-run")
    assert code == 0
    assert "576 targets" in out
    assert "the pretrained pictures need --decoder FILE" in out
    assert "PFLOP" in out
    assert list(tmp_path.iterdir()) == []


def test_doctor(dgn, tmp_path):
    code, out, _ = dgn("doctor", tmp_path, "--discriminator", "vgg16-mini")
    assert code == 0
    assert "keeps create-once" in out
    assert "ok  device" in out


def test_the_decoder_that_ships_is_known_by_name(dgn, tmp_path):
    quick = [word for word in QUICK if word not in ("--width", str(WIDTH))]
    run, line = tmp_path / "r", ["--targets", "classes:star", "--modes", "pretrained", "--decoder", "drawings"]
    code, out, err = dgn("render", run, *line, *quick)
    assert code == 0, err
    assert "1 of 1 pictures" in out
    assert json.loads((run / "run.json").read_text())["config"]["decoder"] == "drawings"
    assert "nothing was left to do" in dgn("resume", run)[1]


def test_pretrained_mode_renders_with_a_decoder(dgn, tmp_path, decoder):
    (tmp_path / "decoder.safetensors").write_bytes(serialise(decoder, {"width": WIDTH}))
    line = [
        "render", tmp_path / "r", "--targets", "classes:star,heart", "--modes", "untrained,pretrained",
        "--decoder", tmp_path / "decoder.safetensors", *QUICK,
    ]  # fmt: skip
    code, out, err = dgn(*line)
    assert code == 0, err
    assert "4 of 4 pictures" in out
    code, _, err = dgn(*line[:2], *line[2:], "--width", "0.25")
    assert code == 2
    assert "was made with --width 0.125, not 0.25" in err
    (tmp_path / "other.safetensors").write_bytes(serialise({"conv0.weight": torch.zeros(1)}, {"width": WIDTH}))
    code, _, err = dgn("render", tmp_path / "r2", *line[2 : -len(QUICK) - 1], tmp_path / "other.safetensors", *QUICK)
    assert code == 2
    assert "does not fit its width 0.125: conv0.weight is (1,)" in err
    assert dgn("sheet", tmp_path / "r", tmp_path / "sheet.png", "--columns", 2)[0] == 0
    with Image.open(tmp_path / "sheet.png") as sheet:
        for row, unit in enumerate((4, 7)):
            for column, mode in enumerate(("untrained", "pretrained")):
                left, top = 6 + column * (224 + 6), 6 + row * (224 + 3 * 18 + 6)
                [path] = (tmp_path / "r" / "images").rglob(f"fc8-{unit:05d}-{mode}-s0.png")
                with Image.open(path) as picture:
                    assert sheet.crop((left, top, left + 224, top + 224)).tobytes() == picture.tobytes()


def test_flags_win_over_the_file(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("targets: classes:polka dots\npreset: draft\nseed: 3\n")
    config = load_config(path, {"seed": 5, "preset": None})
    assert (config.targets, config.preset, config.seed) == (("classes:polka dots",), "draft", 5)


BAD = {
    "unknown class": (["--targets", "classes:unicorn"], "unknown class 'unicorn'"),
    "unknown layer": (["--targets", "filters:conv7_1"], "unknown layer 'conv7_1'"),
    "unknown unit": (["--targets", "classes:24"], "unknown unit 24"),
    "unknown mode": (["--targets", "classes", "--modes", "trained"], "unknown mode 'trained'"),
    "two classes": (["--targets", "classes:cardigan", "--discriminator", "vgg16"], "names 2 classes, 264 and 474"),
    "no decoder": (
        ["--targets", "classes:1", "--modes", "pretrained"],
        "dgn pretrain IMAGES FILE makes one",
    ),
    "missing decoder": (["--targets", "classes:1", "--modes", "pretrained", "--decoder", "no"], "no decoder at "),
    "missing weights": (["--targets", "classes:1", "--weights", "no.pth"], "/no.pth: expected a .safetensors"),
    "unknown preset": (["--targets", "classes:1", "--preset", "best"], "unknown preset 'best'"),
    "unknown network": (["--targets", "classes:1", "--discriminator", "vgg17"], "unknown discriminator 'vgg17'"),
    "bad number": (["--targets", "classes:1", "--shard-size", "0"], "setting shard_size: Input should be greater"),
    "bad batch": (["--targets", "classes:1", "--batch-size", "many"], "setting batch_size"),
    "no such file": (["--config", "no.yaml"], "cannot read the configuration no.yaml"),
    "no GPU": (["--targets", "classes:1", "--gpus-per-worker", "1"], "the cluster has no GPU"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_exit_code_2_and_nothing_written(name, dgn, tmp_path):
    if name == "no GPU" and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    arguments, says = BAD[name]
    network = [] if "--discriminator" in arguments else ["--discriminator", "vgg16-mini"]
    code, _, err = dgn("render", tmp_path / "run", *arguments, *network)
    lines = [line for line in err.splitlines() if line.startswith("dgn: ")]
    assert code == 2
    assert len(lines) == 1
    assert says in lines[0]
    assert not (tmp_path / "run").exists()


def test_bad_settings_files_are_one_line(dgn, tmp_path):
    path = tmp_path / "c.yaml"
    for text, says in (
        ("a: [1", "is no YAML"),
        ("- 1", "holds a list"),
        ("targetz: all", "setting targetz: Extra inputs are not permitted"),
    ):
        path.write_text(text)
        code, _, err = dgn("render", tmp_path / "run", "--config", path)
        assert (code, err.count("\n")) == (2, 1)
        assert says in err


def test_another_configuration_is_refused(finished, dgn):
    code, _, err = dgn("render", finished, "--targets", "classes:1", *QUICK)
    assert code == 2
    assert "holds a run of another configuration" in err


def test_commands_on_what_is_no_run(dgn, tmp_path):
    for command in ("status", "failed", "query", "verify", "gc", "resume"):
        code, _, err = dgn(command, tmp_path / "nowhere")
        assert (code, err) == (
            2,
            f"dgn: no run at {tmp_path / 'nowhere'}: expected the folder of an earlier dgn render\n",
        )


def test_mistyped_commands_and_options_are_one_line(dgn):
    for line, says in (
        (["statsu"], "No such command 'statsu'. Did you mean 'status'?; --help tells"),
        (["render", "x", "--updatez", "5"], "No such option: --updatez (Possible options: --updates); --help tells"),
        (["render", "x", "--updates", "abc"], "Invalid value for '--updates'"),
        (["pretrain", "x"], "Missing argument 'OUT.safetensors'"),
    ):
        code, _, err = dgn(*line)
        assert (code, err.count("\n")) == (2, 1)
        assert err.startswith(f"dgn: {says}")
    assert dgn()[0] == dgn("query", "--help")[0] == 0


def test_help_shows_how_modes_are_written(dgn):
    assert "untrained,pretrained" in dgn("render", "--help")[1]


def test_positional_words_without_targets_are_refused(dgn, tmp_path):
    code, _, err = dgn("render", tmp_path, "classes:1")
    assert code == 2
    assert "targets stand behind --targets" in err


def test_help_imports_nothing_heavy():
    """The half second that --help may take is a benchmark's matter; that torch and ray stay out is a test's."""
    code = "import sys, jobs.cli; print([m for m in ('torch', 'ray', 'pyarrow', 's3fs', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "jobs", "render", "--help"], capture_output=True, text=True, check=True
    )
    print(f"--help took {time.perf_counter() - start:.2f} s")
    assert "--targets" in done.stdout


def test_what_draws_nothing_does_not_wait_for_torch():
    """Of `dgn status` torch would be most of the seconds, and of the start of a worker that only sleeps."""
    code = "import sys, jobs.status, jobs.query, jobs.gc, tests.fakes; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent.parent, check=False).returncode == 0


def readme_lines():
    text = (Path(__file__).parent.parent / "README.md").read_text()
    return [line.strip().split("  #")[0].strip() for line in text.splitlines() if line.startswith("    dgn ")]


def test_the_readme_names_every_command():
    assert {line.split()[1] for line in readme_lines()} >= {
        "render",
        "pretrain",
        "status",
        "failed",
        "resume",
        "verify",
        "gc",
        "query",
        "index",
        "sheet",
        "gallery",
        "judge",
        "report",
        "export",
    }


@pytest.mark.parametrize("line", readme_lines())
def test_lines_of_the_readme_run(line, finished, dgn, decoder, tmp_path, monkeypatch, request):
    """As printed, on a finished run; those that render thousands of pictures of VGG-16 as far as --dry-run goes."""
    monkeypatch.chdir(tmp_path)
    for word, real in (
        ("s3://bucket/run", "RUN"),
        ("runs/squeezenet", "RUN"),
        ("RUN", str(finished)),
        ("NETWORK", "vgg16-mini-b"),
    ):
        line = line.replace(word, real)
    words = shlex.split(line)[1:]
    if "--weights" in words:
        file = words[words.index("--weights") + 1]
        shutil.copy(request.getfixturevalue("real_weights") / file.replace(".", "-imagenet."), file)
    if "judged USING" in line:
        assert dgn("judge", str(finished), "--by", "vgg16-mini-b")[0] == 0
    if words[0] == "render":
        words.append("--dry-run")
        (tmp_path / "decoder.safetensors").write_bytes(serialise(decoder, {"width": WIDTH}))
    if words[0] == "pretrain":
        (tmp_path / "decoder.safetensors").touch()  # test_pretrain.py trains; this is the last check before it
        code, _, err = dgn(*words)
        assert (code, err) == (2, "dgn: decoder.safetensors exists: give another name, or delete it\n")
        return
    code, out, err = dgn(*words)
    assert code == 0, err
    assert out
