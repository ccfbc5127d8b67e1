"""What docs/security.md promises: files are data, rows stay in their run, nothing listens, no secret is told."""

import ast
import contextlib
import io
import ipaddress
import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray.train
import torch
from PIL import Image
from ray.data._internal.object_extensions.arrow import ArrowPythonObjectType
from safetensors.torch import save as save_safetensors

from cluster.photos import _read_table
from cluster.pretrain import _load_state
from cluster.rows import SCHEMA
from cluster.run import sha256
from dgn.decoder import expected_shapes, read_decoder, serialise
from dgn.embedded.drawings import LABELS, draw
from dgn.errors import DgnError, WeightsMismatch, printable
from dgn.photo import UnreadablePhoto, load_photo
from jobs.render import load_config
from tests.conftest import WIDTH, free_port, server

ROOT = Path(__file__).parent.parent
QUICK = ["--discriminator", "vgg16-mini", "--width", str(WIDTH), "--updates", "3", "--views", "1"]
TERMINAL = "\x1b[31m\x1b]0;owned\x07[bold]x[/]\nline"  # colour, the window's title, rich's markup, a second line


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return open, (self.marker, "w")


@pytest.fixture
def marker(tmp_path):
    """Does not exist as long as nothing was unpickled."""
    path = tmp_path / "executed"
    pickle.loads(pickle.dumps(Payload(path))).close()
    assert path.exists(), "the payload works, else these tests show nothing"
    path.unlink()
    return path


@pytest.fixture
def pickles(marker, tmp_path):
    """Files that execute code when they are read as a pickle: torch's own format and a plain one."""
    torch.save({"features.0.weight": Payload(marker)}, tmp_path / "zip.pth")
    torch.load(tmp_path / "zip.pth", weights_only=False)["features.0.weight"].close()
    marker.unlink()
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Payload(marker)))
    return [tmp_path / "zip.pth", tmp_path / "plain.pth"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory, local_ray):
    """A run of two classes in one shard."""
    from jobs.render import render_command

    folder = tmp_path_factory.mktemp("run") / "r"
    settings = {"targets": ["classes:0-1"], "discriminator": "vgg16-mini", "width": WIDTH, "updates": 3, "views": 1}
    render_command(str(folder), load_config(None, settings | {"precision": "float32"}), dry_run=False)
    return folder


@pytest.fixture
def run(finished, tmp_path):
    """A copy to tamper with; not indexed, so that what is asked is answered from its rows."""
    return Path(shutil.copytree(finished, tmp_path / "run", ignore=shutil.ignore_patterns("index")))


def edit_rows(run, **changes):
    """Writes the shard's rows again with other values in its first."""
    [path] = (run / "metadata").iterdir()
    rows = pq.read_table(path).to_pylist()
    rows[0] |= changes
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), path)
    return rows[0]


def ends_in_one_line(ended, *says, with_code=2):
    """Returns the line."""
    code, _, error = ended
    lines = [line for line in error.splitlines() if line]
    assert code == with_code, error
    assert len(lines) == 1, error
    assert lines[0].startswith("dgn: ")
    for text in says:
        assert text in lines[0]
    return lines[0]


# Files are data.


def test_weights_files_execute_nothing(pickles, marker, run, dgn, tmp_path):
    for path in pickles:
        for line in (
            ("render", tmp_path / "new", "--targets", "classes:0", *QUICK, "--weights", path),
            ("resume", run, "--weights", path),
            ("verify", run, "--weights", path),
            ("doctor", "--discriminator", "vgg16-mini", "--weights", path),
        ):
            ends_in_one_line(dgn(*line), path.name)
            assert not marker.exists()
    assert not (tmp_path / "new").exists()


def test_decoder_files_execute_nothing(pickles, marker, dgn, tmp_path):
    for path in pickles:
        disguised = tmp_path / f"{path.stem}.safetensors"
        shutil.copy(path, disguised)
        for decoder in (path, disguised):
            line = ("--targets", "classes:0", "--modes", "pretrained", *QUICK, "--decoder", decoder)
            ends_in_one_line(dgn("render", tmp_path / "new", *line), "is no whole decoder file")
            assert not marker.exists()


@pytest.mark.parametrize("width", ["x", None, -1, 0, 1e308, float("nan"), [1], {}])
def test_a_decoders_header_is_not_believed(width, decoder):
    with pytest.raises(WeightsMismatch, match="does not say in its header how wide it is"):
        read_decoder(serialise(decoder, {"width": width}), "file")


def test_a_decoders_header_of_another_kind_is_one_line(decoder):
    assert set(decoder) == set(expected_shapes(WIDTH))
    for header in ("[]", "1", '"x"', "{", "[" * 100_000):
        with pytest.raises(WeightsMismatch) as caught:
            read_decoder(save_safetensors(decoder, metadata={"dgn": header}), "file")
        assert "\n" not in str(caught.value)


def test_a_runs_files_execute_nothing(pickles, marker, run, dgn):
    """Each of a run's files in turn is a pickle."""
    [rows] = (run / "metadata").iterdir()
    png = next((run / "images").rglob("*.png"))
    note = run / "failures" / "000000" / "aaaaaaaa.json"
    note.parent.mkdir(parents=True)
    for path, command, code in (
        (run / "run.json", "status", 2), (rows, "query", 1), (rows, "verify", 1), (rows, "gc", 1),
        (note, "failed", 1), (png, "verify", 1), (png, "sheet", 1),
    ):  # fmt: skip
        before = path.read_bytes() if path.exists() else b"{}"
        for source in pickles:
            shutil.copy(source, path)
            ended = dgn(command, run, *([run.parent / "sheet.png"] if command == "sheet" else []))
            assert ended[0] == code, ended
            assert ended[2].count("\n") == 1, ended
            assert not marker.exists()
        path.write_bytes(before)


def test_settings_in_yaml_execute_nothing(marker, dgn, tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(f"targets: !!python/object/apply:builtins.open ['{marker}', 'w']\n")
    ends_in_one_line(dgn("render", tmp_path / "new", "--config", path), "is no YAML")
    assert not marker.exists()


@pytest.mark.parametrize("place", ["column", "field beside the bytes", "bytes"])
def test_photographs_in_parquet_execute_nothing(place, marker, tmp_path):
    """Ray Data registers a type of Arrow whose values are pickles, for every Parquet file that its process reads."""
    pickled = pa.array([pickle.dumps(Payload(marker))], pa.large_binary())
    evil = pa.ExtensionArray.from_storage(ArrowPythonObjectType(), pickled)
    column = {
        "column": evil,
        "field beside the bytes": pa.StructArray.from_arrays([pa.array([b"x"]), evil], ["bytes", "path"]),
        "bytes": pa.StructArray.from_arrays([evil], ["bytes"]),
    }[place]
    pq.write_table(pa.table({"image": column}), tmp_path / "0.parquet")
    pq.read_table(tmp_path / "0.parquet").to_pylist()[0]
    assert marker.exists(), "read carelessly, the file executes"
    marker.unlink()
    with contextlib.suppress(DgnError):
        rows = list(_read_table(str(tmp_path), "image", {"key": "0.parquet"}))
        assert rows == [{"name": "0.parquet row 0", "bytes": b"x", "error": ""}]
    assert not marker.exists()


def test_a_trainings_state_executes_nothing(marker, tmp_path, monkeypatch):
    torch.save({"model": Payload(marker)}, tmp_path / "state.pt")
    monkeypatch.setattr("ray.train.get_checkpoint", lambda: ray.train.Checkpoint.from_directory(tmp_path))
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        _load_state()
    assert not marker.exists()


@pytest.mark.slow
def test_a_resumed_training_executes_nothing(marker, tmp_path):
    """A real training is killed after its first epoch, its checkpoint exchanged, and the training resumed."""
    photos = tmp_path / "photos"
    photos.mkdir()
    stream = np.random.default_rng(0)
    for i, label in enumerate(LABELS[:8]):
        Image.fromarray(draw(label, stream, 256)).save(photos / f"{i}.png")
    line = ["pretrain", str(photos), str(tmp_path / "d.safetensors"), "--width", "0.03125", "--epochs", "10000"]
    line += ["--batch-size", "4", "--precision", "float32"]
    with short_folder() as folder:
        training = start(line, folder, tmp_path / "log")
        checkpoints = tmp_path / "d.training"
        wait_for(lambda: list(checkpoints.rglob("state.pt")), training, tmp_path / "log")
        training.kill()
        training.wait()
    states = list(checkpoints.rglob("state.pt"))
    for state in states:
        torch.save({"model": Payload(marker)}, state)
    with short_folder() as folder:
        resumed = start([*line, "--resume"], folder, tmp_path / "log")
        code = resumed.wait(timeout=200)
    lines = [line for line in (tmp_path / "log").read_text().splitlines() if line.startswith("dgn: ")]
    assert states
    assert not marker.exists()
    assert code == 1
    assert len(lines) == 1
    assert "training ended: " in lines[0]


def png_of_size(width, height):
    """A PNG of a few bytes whose header says that it is huge."""
    header = b"IHDR" + width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 2, 0, 0, 0])
    chunk = (13).to_bytes(4, "big") + header + zlib.crc32(header).to_bytes(4, "big")
    body = zlib.compress(b"\0" * 1000)
    data = len(body).to_bytes(4, "big") + b"IDAT" + body + zlib.crc32(b"IDAT" + body).to_bytes(4, "big")
    return b"\x89PNG\r\n\x1a\n" + chunk + data + b"\0\0\0\0IEND\xaeB`\x82"


def test_pictures_that_claim_to_be_huge_are_not_decoded(run, dgn, tmp_path):
    with pytest.raises(UnreadablePhoto, match="at most 89 million"):
        load_photo(png_of_size(60_000, 60_000))
    png = next((run / "images").rglob("*.png"))
    for side, says in ((60_000, "exceeds limit"), (9_000, "is 9000 x 9000 px")):
        png.write_bytes(png_of_size(side, side))
        ends_in_one_line(dgn("sheet", run, tmp_path / "sheet.png"), says, with_code=1)


def test_no_photograph_starts_another_program():
    """Pillow hands EPS to Ghostscript, whatever the file's name says."""
    eps = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(eps, "EPS")
    with pytest.raises(UnreadablePhoto, match="no picture of a known kind"):
        load_photo(eps.getvalue())


SOURCES = [path for room in ("dgn", "cluster", "jobs") for path in sorted((ROOT / room).rglob("*.py"))]
FORBIDDEN = {
    "pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "eval", "exec", "os.system", "os.popen",
    "yaml.load", "yaml.load_all", "yaml.full_load", "yaml.unsafe_load", "pandas.read_pickle", "torch.hub.load",
}  # fmt: skip


def unsafe_calls(source):
    """Names of what must not be in the project's code, found in its syntax tree."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] in FORBIDDEN)
        elif isinstance(node, ast.ImportFrom):
            yield from (n for n in [node.module, *(f"{node.module}.{a.name}" for a in node.names)] if n in FORBIDDEN)
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            if name in FORBIDDEN:
                yield name
            if name == "torch.load" and given.get("weights_only") != "True":
                yield "torch.load without weights_only=True"
            if given.get("allow_pickle", "False") != "False" or given.get("shell", "False") != "False":
                yield f"{name} with allow_pickle or shell"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_code_unpickles_and_evaluates_nothing(path):
    assert list(unsafe_calls(path.read_text())) == []


def test_the_check_of_the_code_sees_what_it_looks_for():
    for source in (
        "import pickle", "import ray.cloudpickle as p\nfrom ray import cloudpickle\nimport cloudpickle", "eval('1')",
        "from yaml import load", "import yaml; yaml.load(x)", "import torch; torch.load(x)",
        "import torch; torch.load(x, weights_only=False)", "import numpy as np; np.load(x, allow_pickle=True)",
        "import subprocess; subprocess.run(x, shell=True)", "from os import system",
    ):  # fmt: skip
        assert list(unsafe_calls(source)), source
    assert not list(unsafe_calls("import torch; torch.load(x, weights_only=True); model.eval()"))


# Rows stay in their run.


@pytest.mark.parametrize("name", ["../outside.png", "images/../../outside.png", "ABSOLUTE", "LINK", "a\0b"])
def test_no_row_leads_out_of_its_run(name, run, dgn, tmp_path):
    """Outside lies a real picture, which the commands would take if they could reach it."""
    outside = tmp_path / "outside.png"
    shutil.copy(next((run / "images").rglob("*.png")), outside)
    if name == "LINK":
        (run / "images" / "elsewhere").symlink_to(tmp_path)
        name = "images/elsewhere/outside.png"
    edit_rows(run, file_name=str(outside) if name == "ABSOLUTE" else name)
    for line in (("verify", run), ("sheet", run, tmp_path / "sheet.png")):
        ends_in_one_line(dgn(*line), "leaves the run", with_code=1)
    assert not (tmp_path / "sheet.png").exists()
    assert dgn("query", run)[0] == dgn("gc", run, "--uncommitted")[0] == 0  # names are shown and compared, not read
    assert outside.exists()


@pytest.mark.parametrize("folder", ["images", "metadata", "failures"])
def test_a_folder_that_is_a_link_out_of_the_run_is_refused(folder, run, dgn, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    shutil.rmtree(run / folder, ignore_errors=True)
    victim = elsewhere / "000009" / "x" / "photo.png"
    victim.parent.mkdir(parents=True)
    victim.touch()
    (run / folder).symlink_to(elsewhere)
    for command in ("gc", "verify", "failed"):
        code, _, error = dgn(command, run, *(["--uncommitted"] if command == "gc" else []))
        if code:
            assert error.count("\n") == 1, error
    assert victim.exists()


EDITED = {
    "no object": lambda content: [],
    "no fingerprint": lambda content: {**content, "fingerprint": "x"},
    "a hash less": lambda content: {**content, "fingerprint": {"schema_version": 1, "discriminator": "vgg16-mini"}},
    "no preset": lambda content: {**content, "config": {}},
    "negative": lambda content: {**content, "num_shards": -1},
    "a word": lambda content: {**content, "num_shards": "many"},
    "endless": lambda content: {**content, "num_shards": 10**30},
    "nothing": lambda content: {},
}


@pytest.mark.parametrize("edit", EDITED)
def test_an_edited_run_json_is_one_line(edit, run, dgn, tmp_path):
    path = run / "run.json"
    path.write_text(json.dumps(EDITED[edit](json.loads(path.read_text()))))
    commands = ("status", "failed", "query", "verify", "gc", "resume")
    for line in (*((command, run) for command in commands), ("sheet", run, tmp_path / "sheet.png")):
        ends_in_one_line(dgn(*line), str(run))


@pytest.mark.parametrize("config", [{"preset": "standard", "seeds": "x"}, {"preset": "standard", "unknown": 1}])
def test_edited_settings_are_one_line(config, run, dgn):
    path = run / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"config": config}))
    for command in ("verify", "resume"):
        ends_in_one_line(dgn(command, run), "does not fit this dgn")


def without(name):
    return lambda table: table.drop_columns([name])


def retyped(name, values):
    return lambda table: table.set_column(table.column_names.index(name), name, pa.array(values))


def not_utf8(table):
    bad = pa.Array.from_buffers(pa.string(), 2, pa.array([b"\xff\xfe", b"x"], pa.binary()).buffers())
    return table.set_column(table.column_names.index("label"), "label", bad)


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (without("status"), "no column status"),
        (retyped("status", [1, 2]), "no column status of type string"),
        (retyped("status", pa.nulls(2, pa.string())), "rows without a status"),
        (not_utf8, "no whole Parquet file"),
    ],
)
def test_edited_rows_are_one_line(edit, says, run, dgn, tmp_path):
    [path] = (run / "metadata").iterdir()
    pq.write_table(edit(pq.read_table(path)), path)
    commands = ("verify", "query", "failed", "status") if says != "no whole Parquet file" else ("verify", "query")
    for line in (*((command, run) for command in commands), ("sheet", run, tmp_path / "sheet.png")):
        ends_in_one_line(dgn(*line), says, with_code=1)


def test_a_picture_that_is_not_ours_is_not_scored(run, dgn):
    """Its row's sha256 was edited with it."""
    png = io.BytesIO()
    Image.new("RGB", (1, 1)).save(png, "PNG")
    row = edit_rows(run, sha256=sha256(png.getvalue()))
    (run / row["file_name"]).write_bytes(png.getvalue())
    ends_in_one_line(dgn("verify", run), "is 1 x 1 px")


def test_what_others_wrote_does_not_steer_the_terminal(run, dgn, tmp_path):
    edit_rows(run, label=TERMINAL, status="dead", reason=TERMINAL)
    note = run / "failures" / "000000" / "aaaaaaaa.json"
    note.parent.mkdir(parents=True)
    note.write_text(json.dumps({"shard": 7, "attempt": TERMINAL, "failed_at": TERMINAL, "error": TERMINAL}))
    content = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**content, "run_id": TERMINAL}))
    for line in (
        ("query", run), ("query", run, "--format", "csv"), ("query", run, "--format", "json"), ("failed", run),
        ("status", run), ("verify", run), ("sheet", run, tmp_path / "sheet.png"),
    ):  # fmt: skip
        code, out, error = dgn(*line)
        assert code == 0 or line[0] == "verify", error
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f]", (out + error).replace("\r\n", "\n")), line
        if line[0] in ("query", "failed"):
            assert "[bold]x[/]" in out.replace("\n", ""), "shown as it is, not taken for markup"
    edit_rows(run, target_id=TERMINAL, file_name=f"../{TERMINAL}")
    for command in ("verify", "failed"):
        code, out, error = dgn(command, run)
        assert "\x1b" not in out + error
    assert printable(TERMINAL) == r"\x1b[31m\x1b]0;owned\x07[bold]x[/]\nline"
    assert printable("Süßwasser 鶴 …") == "Süßwasser 鶴 …"


# Nothing listens beyond this machine.


@contextlib.contextmanager
def short_folder():
    """Where Ray keeps a session, sockets included; what is left of its daemons ends with it."""
    folder = tempfile.mkdtemp(prefix="dgn-")
    yield Path(folder)
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if any(folder in word for word in process.cmdline()):
                process.send_signal(signal.SIGKILL)
    shutil.rmtree(folder, ignore_errors=True)


def start(line, folder, log, **environment):
    """`dgn` as a process with a Ray of its own, begun as a person begins it."""
    surroundings = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    surroundings |= {"RAY_TMPDIR": str(folder), **environment}
    with log.open("w") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "jobs", *line], env=surroundings, stdout=file, stderr=file, cwd=ROOT
        )


def wait_for(condition, process, log):
    for _ in range(1200):
        if condition():
            return
        assert process.poll() is None, log.read_text()
        time.sleep(0.1)
    raise AssertionError(log.read_text())


def listening(process, folder):
    """(process, address) of every socket that a process, what it started, or the daemons of its Ray listen at."""
    family = {process.pid} | {child.pid for child in psutil.Process(process.pid).children(recursive=True)}
    for other in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            name = " ".join(other.cmdline())
            if other.pid in family or str(folder) in name:
                for socket in other.net_connections("inet"):
                    if socket.status == psutil.CONN_LISTEN:
                        yield name, ipaddress.ip_address(socket.laddr.ip)


def test_nothing_listens_beyond_this_machine(tmp_path):
    """A plain `dgn render`, looked at until it ends."""
    line = ["render", str(tmp_path / "run"), "--targets", "classes:0-3", "--discriminator", "vgg16-mini"]
    line += ["--width", str(WIDTH), "--updates", "30", "--views", "1"]
    seen = set()
    with short_folder() as folder:
        render = start(line, folder, tmp_path / "log")
        while render.poll() is None:
            with contextlib.suppress(psutil.NoSuchProcess):
                seen |= set(listening(render, folder))
            time.sleep(0.3)
    assert render.returncode == 0, (tmp_path / "log").read_text()
    assert any("gcs_server" in name for name, _ in seen), "Ray's daemons were looked at"
    assert any("ray::RenderActor" in name for name, _ in seen), "and its workers"
    beyond = {(name[:80], str(at)) for name, at in seen if not (getattr(at, "ipv4_mapped", None) or at).is_loopback}
    assert not beyond


def test_a_cluster_of_somebody_else_is_not_joined(tmp_path):
    """Ray would join the cluster that was last begun on this machine, by anybody who may write this file."""
    with short_folder() as folder:
        (folder / "ray").mkdir()
        (folder / "ray" / "ray_current_cluster").write_text(f"127.0.0.1:{free_port()}")
        line = ["render", str(tmp_path / "run"), "--targets", "classes:0", *QUICK]
        render = start(line, folder, tmp_path / "log")
        code = render.wait(timeout=120)
    assert code == 0, (tmp_path / "log").read_text()


# No secret is told.

SECRET = "tellingSecretKey0123456789abcdefghijklmn"
KEY_ID = "AKIATELLINGKEYIDENT0"


def everything_in(*folders):
    """Bytes of all files below the folders, by name."""
    for folder in folders:
        for path in Path(folder).rglob("*"):
            if path.is_file() and not path.is_symlink():
                with contextlib.suppress(OSError):
                    yield str(path), path.read_bytes()


def wrong_endpoint(server):
    return f"http://127.0.0.1:{free_port()}"


def endpoint_with_password(server):
    return server.replace("http://", f"http://user:{SECRET}@").replace(server.rsplit(":", 1)[1], str(free_port()))


@pytest.mark.parametrize("endpoint", [str, wrong_endpoint, endpoint_with_password])
def test_credentials_are_told_nobody(endpoint, bucket, s3_server, tmp_path):
    """A run that works and two whose endpoint does not: not in what dgn prints, nor the run, nor Ray's logs."""
    credentials = {
        "AWS_ACCESS_KEY_ID": KEY_ID, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_SESSION_TOKEN": f"session{SECRET}",
        "AWS_ENDPOINT_URL": endpoint(s3_server["AWS_ENDPOINT_URL"]),
    }  # fmt: skip
    line = ["render", f"s3://{bucket}/run", "--targets", "classes:0-1", *QUICK]
    with short_folder() as folder:
        code = start(line, folder, tmp_path / "log", **credentials).wait(timeout=200)
        told = dict(everything_in(folder))
        assert any("gcs_server" in name for name in told) or code == 2, "Ray's logs were read"
    printed = (tmp_path / "log").read_text()
    assert code == (0 if endpoint is str else 2), printed
    if code:
        assert len([line for line in printed.splitlines() if line.startswith("dgn: ")]) == 1
    told["printed"] = printed.encode()
    if endpoint is str:
        from cluster.storage import open_store

        store = open_store(f"s3://{bucket}/run")
        told |= {key: store.read(key) for key in store.list("")}
        assert {key.split("/")[0] for key in told} >= {"run.json", "metadata", "images"}
    assert [name for name, data in told.items() if SECRET.encode() in data] == []


def test_a_key_that_the_store_refuses_is_not_told(dgn, tmp_path, monkeypatch):
    rclone = Path(sys.executable).parent / "rclone"
    if not rclone.exists():
        pytest.skip("no rclone beside the tests' Python")
    (tmp_path / "bucket").mkdir()
    port = free_port()
    address = ["--addr", f"127.0.0.1:{port}", "--auth-key", "another,key"]
    with server([str(rclone), "serve", "s3", str(tmp_path), *address], port) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY_ID)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        line = ends_in_one_line(dgn("status", "s3://bucket/run"), "Forbidden")
    assert SECRET not in line
    assert KEY_ID not in line
