"""The command line as a whole: which commands there are, what they load, and how they end."""

import os
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dgn import __version__
from dgn.jobs.cli import COMMANDS
from dgn.method.decoder import serialise
from tests.conftest import WIDTH
from tests.helpers.photographs import write_drawings
from tests.helpers.rows import assert_one_line

ROOT = Path(__file__).parent.parent.parent
INTERRUPTED = "dgn: interrupted; repeat the command to continue"
HEAVY = ("torch", "ray", "pyarrow", "s3fs", "numpy", "pydantic", "botocore")


def test_an_empty_run_is_refused(dgn):
    assert dgn("status", "") == (
        2,
        "",
        "dgn: the address of the run is empty: expected a folder, or s3://, gs:// or az://bucket/prefix\n",
    )


def test_commands_on_a_folder_that_does_not_exist(dgn, tmp_path):
    says = f"dgn: no run at {tmp_path / 'nowhere'}: expected the folder of an earlier dgn render\n"
    for command in ("status", "failed", "query", "verify", "gc", "resume", "index", "report", "judge --summary"):
        assert dgn(*command.split(), tmp_path / "nowhere") == (2, "", says)


def test_mistyped_commands_and_options_are_one_line(dgn):
    for line, says in (
        (["statsu"], "No such command 'statsu'. Did you mean 'status'?; see --help"),
        (["render", "x", "--updatez", "5"], "No such option: --updatez (Possible options: --updates); see --help"),
        (["render", "x", "--updates", "abc"], "setting updates: expected an integer, got 'abc'"),
        (["query", "x", "--top", "abc"], "Invalid value for '--top'"),
        (["query", "x", "--by", "size"], "Invalid value for '--by': 'size' is not one of 'activation', "),
        (["pretrain", "x"], "Missing argument 'OUT.safetensors'"),
    ):
        assert_one_line(dgn(*line), 2, f"dgn: {says}")
    assert dgn()[0] == dgn("query", "--help")[0] == 0


SWALLOWS = """
import time
print("importing", flush=True)
try:
    time.sleep(60)
except BaseException:  # as some libraries try optional imports
    print("went on", flush=True)
time.sleep(60)
"""
COMMAND_THAT_IMPORTS = """
from importlib import import_module
from dgn.jobs import __main__, cli
cli.import_module = lambda _: import_module("swallows")
__main__.main()
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_a_command_that_is_importing(number, code, tmp_path):
    (tmp_path / "swallows.py").write_text(SWALLOWS)
    line = [sys.executable, "-c", COMMAND_THAT_IMPORTS, "status", "run"]
    surroundings = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *filter(None, sys.path)])}
    with subprocess.Popen(line, env=surroundings, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "importing\n"
        process.send_signal(number)
        out, err = process.communicate(timeout=30)
    assert_one_line((process.returncode, out, err), code, INTERRUPTED)


COMMAND_IN_C = """
import hashlib
from types import SimpleNamespace
from dgn.jobs import __main__, cli
def command():
    print("counting", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2 ** 31 - 1)
cli.import_module = lambda _: SimpleNamespace(command=command)
__main__.main()
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_a_command_that_is_in_a_library_for_minutes(number, code):
    """Python's own handler does not run before the library is done."""
    assert_one_line(interrupted(COMMAND_IN_C, number, "counting\n"), code, INTERRUPTED)


COMMAND_THAT_FORKS = """
import os, signal, time
from types import SimpleNamespace
from dgn.jobs import __main__, cli
def command():
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.write(writer, b"!")
        time.sleep(60)
    os.read(reader, 1)
    os.kill(child, signal.SIGTERM)
    print("ended by", os.waitpid(child, 0)[1], flush=True)
    time.sleep(1)
cli.import_module = lambda _: SimpleNamespace(command=command)
__main__.main()
"""


def test_a_signal_to_a_process_that_the_command_forked_is_that_one_s():
    """A forked process inherits the wakeup descriptor, through which the command learns of its own signals."""
    line = [sys.executable, "-c", COMMAND_THAT_FORKS, "status"]
    done = subprocess.run(line, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[-1] == f"ended by {int(signal.SIGTERM)}"


def interrupted(command, number, *lines):
    """Sends the signal each time that the command has printed the next line: its exit code and what else it printed."""
    with subprocess.Popen(
        [sys.executable, "-c", command, "status"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            for line in lines:
                assert process.stdout.readline() == line
                process.send_signal(number)
            out, err = process.communicate(timeout=30)
        finally:
            process.kill()
    return process.returncode, out, err


COMMAND_THAT_ENDS_SLOWLY = """
import time
from types import SimpleNamespace
from dgn import interrupts
from dgn.jobs import __main__, cli
def command():
    try:
        print("working", flush=True)
        time.sleep(60)
    finally:
        print("ending", flush=True)
        time.sleep(60)
        print("ended", flush=True)
interrupts.ANSWER_S = 60
cli.import_module = lambda _: SimpleNamespace(command=command)
__main__.main()
"""


def test_a_second_signal_does_not_wait_for_an_orderly_end():
    assert_one_line(interrupted(COMMAND_THAT_ENDS_SLOWLY, signal.SIGINT, "working\n", "ending\n"), 130, INTERRUPTED)


def test_an_orderly_end_has_more_time_than_a_library():
    command = COMMAND_THAT_ENDS_SLOWLY.replace("ANSWER_S", "END_S").replace("time.sleep(60)", "time.sleep(1.5)")
    code, out, err = interrupted(command, signal.SIGINT, "working\n")
    assert (code, out) == (130, "ending\nended\n")
    assert_one_line((code, "", err), 130, INTERRUPTED)


def test_the_version(dgn):
    assert dgn("--version") == (0, f"{__version__}\n", "")


def test_help_lists_every_command(dgn):
    code, out, _ = dgn("--help")
    assert code == 0
    assert all(f" {name} " in out for name in COMMANDS)


def loaded_by(*arguments):
    """The modules in a process after a command."""
    code = (
        "import sys; sys.argv = ['dgn', *sys.argv[1:]]\n"
        "from dgn.jobs import cli\n"
        "try: cli.main()\n"
        "except SystemExit as end: assert not end.code\n"
        "print(*sys.modules, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, check=True
    )
    return done.stdout, set(done.stderr.split())


def test_help_loads_nothing_heavy():
    """The third of a second that --help may take is for people to measure; that nothing heavy is loaded is a test's."""
    out, modules = loaded_by("--help")
    assert "render" in out
    assert not modules & set(HEAVY)
    out, modules = loaded_by("render", "--help")
    assert "--targets" in out
    assert not modules & {"torch", "ray", "s3fs"}


def test_commands_that_draw_nothing_do_not_load_torch(rendered):
    """It would be most of the seconds of `dgn status`, and of the start of a worker that only sleeps."""
    for arguments in (["status", rendered], ["query", rendered], ["gc", rendered, "--dry-run"], ["resume", rendered]):
        assert not loaded_by(*arguments)[1] & {"torch", "ray"}
    code = "import sys, tests.helpers.fakes; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def commands_of_the_readme():
    """Lines of its code, indented or fenced, that start with `dgn`."""
    found, is_fenced = [], False
    for line in (ROOT / "README.md").read_text().splitlines():
        is_fenced ^= line.lstrip().startswith("```")
        if line.startswith("    dgn ") or (is_fenced and line.lstrip().startswith("dgn ")):
            found.append(line.split("  #")[0].strip())
    return list(dict.fromkeys(found))


def test_the_readme_names_every_command_for_a_run():
    named = {line.split()[1] for line in commands_of_the_readme()}
    assert named >= COMMANDS.keys() - {"info", "doctor", "tune"}


@pytest.fixture(scope="module")
def readmes(rendered, tmp_path_factory):
    """A run that the README's commands may write into."""
    folder = tmp_path_factory.mktemp("readme") / "run"
    shutil.copytree(rendered, folder)
    return folder


@pytest.mark.parametrize("line", commands_of_the_readme())
def test_commands_of_the_readme_run(line, readmes, dgn, decoder, tmp_path, monkeypatch, request):
    """As printed, on a finished run; those that render thousands of pictures of VGG-16 as far as --dry-run goes."""
    monkeypatch.chdir(tmp_path)
    for word in ("s3://bucket/run", "runs/squeezenet", "RUN", "OTHER"):
        line = line.replace(word, str(readmes))
    write_drawings(tmp_path / "photos", 3)
    words = shlex.split(line.replace("NETWORK", "vgg16-mini-b"))[1:]
    if "--weights" in words:
        file = words[words.index("--weights") + 1]
        shutil.copy(request.getfixturevalue("real_weights") / file.replace(".", "-imagenet."), file)
    if words[0] == "render":
        words = [*words, "--dry-run"]
        words[1] = str(tmp_path / "run")  # it compares with a run that is there
    if "--sql" in words and "judged" in line:
        assert dgn("judge", readmes, "--by", "vgg16-mini-b")[0] == 0
    (tmp_path / "decoder.safetensors").write_bytes(serialise(decoder, {"width": WIDTH}))
    if words[0] == "pretrain":  # tests/cluster/test_training.py trains; this is the last check before it
        code, _, err = dgn(*words)
        assert (code, err) == (2, "dgn: decoder.safetensors exists: give another name, or delete it\n")
        return
    code, out, err = dgn(*words)
    assert code == 0, err
    assert out
