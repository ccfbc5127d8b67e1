"""`ray up` for real: cluster/local.yaml over ssh to three machines that are namespaces of this one, and one is lost."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml

from tests.conftest import WIDTH
from tests.helpers.reliability import lost_and_twice

ROOT = Path(__file__).parent.parent.parent
SCRIPTS = Path(sys.executable).parent
MACHINES = ROOT / "tests" / "helpers" / "ray_up" / "machines.sh"
HEAD, LAPTOP = "10.77.0.1", "10.77.0.254"  # as machines.sh gives them
WORKERS = {"worker-1": "10.77.0.2", "worker-2": "10.77.0.3"}
DASHBOARD = f"http://{HEAD}:8265"
NAMESPACES = ["--net", "--mount", "--pid", "--ipc", "--uts"]
NUM_TARGETS = 12


def why_not():
    """Why this machine can hold no such machines; empty where it can."""
    tools = ["ip", "nsenter", "rsync", "ssh", "ssh-keygen", "sshd", "unshare"]
    if missing := [tool for tool in tools if not shutil.which(tool)]:
        return f"not installed: {', '.join(missing)}"
    if os.geteuid() != 0:
        return "namespaces with addresses of their own need root"
    probe = "mount -t tmpfs tmpfs /run && ip link add bridge type bridge && ip netns add machine"
    probe += " && ip link add outside type veth peer name inside netns machine && ip netns exec machine unshare"
    probe += " --mount --pid --fork --mount-proc true"
    command = ["unshare", *NAMESPACES, "--fork", "--mount-proc", "sh", "-c", f"mkdir -p /run && {probe}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return f"namespaces are not allowed here: {done.stderr.strip()}" if done.returncode else ""


def wait_for(what, condition, timeout_s):
    """The first true answer of `condition`."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        if answer := condition():
            return answer
        time.sleep(0.1)
    raise AssertionError(f"{what}: not within {timeout_s} s")


class Laptop:
    """Where a person types: a namespace that reaches the machines."""

    def __init__(self, folder, init):
        self.folder, self.checkout = folder, folder / "checkout"
        self.enter = ["nsenter", f"--target={init}", *NAMESPACES, "env", "-C", str(self.checkout)]
        self.environment = {
            "HOME": "/tmp/home", "USER": "root", "PATH": f"{SCRIPTS}:{os.environ['PATH']}", "RAY_AUTH_MODE": "token",
            "OMP_NUM_THREADS": "1", "PYTHONPATH": str(self.checkout),
        }  # fmt: skip

    def start(self, command, log, **environment):
        """A process whose output goes to FOLDER/LOG."""
        with (self.folder / log).open("ab") as file:
            return subprocess.Popen(
                [*self.enter, *command], env=self.environment | environment, stdin=subprocess.DEVNULL, stdout=file,
                stderr=subprocess.STDOUT,
            )  # fmt: skip

    def run(self, *command, timeout_s=120, log="commands.log", **environment):
        """Exit code and what it printed."""
        path = self.folder / log
        before = path.stat().st_size if path.exists() else 0
        code = self.start(command, log, **environment).wait(timeout_s)
        return code, path.read_bytes()[before:].decode()

    def checked(self, *command, **options):
        code, printed = self.run(*command, **options)
        assert code == 0, f"{' '.join(command)}: {printed}"
        return printed

    def processes(self, machine):
        """Command lines of what runs on a machine beside its sshd."""
        show = f"for pid in $(ip netns pids {machine}); do tr '\\0' ' ' < /proc/$pid/cmdline; echo; done 2> /dev/null"
        lines = self.checked("sh", "-c", show).splitlines()
        return [line for line in lines if line and not re.match(r"unshare |sshd|/\S*sshd ", line)]


@pytest.fixture
def laptop(tmp_path):
    if reason := why_not():
        pytest.skip(reason)
    (tmp_path / "checkout").mkdir()
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "key"], check=True)
    shutil.copy(tmp_path / "key.pub", tmp_path / "authorized_keys")
    command = ["unshare", *NAMESPACES, "--fork", "--kill-child", "--mount-proc", "bash", str(MACHINES), str(tmp_path)]
    outer = subprocess.Popen(
        [*command, str(ROOT), sys.prefix, sys.base_prefix], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert outer.stdout.readline() == b"ready\n"
        yield Laptop(tmp_path, psutil.Process(outer.pid).children()[0].pid)
    finally:
        outer.kill()  # and with it the laptop's init, and with that all machines
        outer.communicate()
        for log in sorted(tmp_path.glob("*.log")):
            print(f"--- {log.name}\n{log.read_text(errors='replace')[-20_000:]}")


@pytest.fixture
def s3(laptop):
    """A real S3 server on the laptop; the folder in which it keeps its objects as files."""
    folder = laptop.folder / "s3"
    environment = {
        "BIND_HOST": LAPTOP, "MINISTACK_HOST": LAPTOP, "GATEWAY_PORT": "9000", "SERVICES": "s3", "S3_PERSIST": "1",
        "S3_DATA_DIR": str(folder), "STATE_DIR": str(folder),
    }  # fmt: skip
    laptop.start(["ministack"], "s3-server.log", **environment)
    return folder


def local_yaml():
    """The file as a user would have filled it in."""
    text = (ROOT / "cluster" / "local.yaml").read_text()
    config = yaml.safe_load(text.replace("10.0.0.1", HEAD))
    config["provider"]["worker_ips"] = list(WORKERS.values())
    config["auth"] = {"ssh_user": "root", "ssh_private_key": "/tmp/home/.ssh/id_ed25519"}
    # Not filled in but replaced: the packages are those of this test's own Python, not five gigabytes downloaded three
    # times; and one core each, because three machines share the cores of one.
    assert config["setup_commands"][0] == "make -C ~/dgn setup"
    config["setup_commands"][0] = f"ln -sfn {sys.prefix} ~/dgn/.venv"
    for commands in (config["head_start_ray_commands"], config["worker_start_ray_commands"]):
        commands[-1] = commands[-1].replace("ray start", "ray start --num-cpus=1")
    return config


@pytest.mark.ray_up
@pytest.mark.timeout(900)
def test_a_machine_is_lost_under_ray_up(laptop, s3, reliability):
    shutil.copytree(
        ROOT, laptop.checkout, dirs_exist_ok=True, symlinks=True,
        ignore=shutil.ignore_patterns(".*", "docs", "__pycache__", "demo-run", "build"),
    )  # fmt: skip
    (laptop.checkout / "cluster" / "local.yaml").write_text(yaml.safe_dump(local_yaml(), sort_keys=False))
    home = f"install -m 600 {laptop.folder}/key /tmp/home/.ssh/id_ed25519 && mkdir /tmp/home/.aws && cd /tmp/home/.aws"
    home += " && printf '[default]\\naws_access_key_id = test\\naws_secret_access_key = test\\n' > credentials"
    home += f" && printf '[default]\\nregion = us-east-1\\nendpoint_url = http://{LAPTOP}:9000\\n' > config"
    laptop.checked("sh", "-c", home)
    bucket = "import s3fs; s3fs.S3FileSystem().mkdir('bucket')"
    wait_for("a bucket", lambda: laptop.run("python", "-c", bucket)[0] == 0, 60)
    laptop.checked("ray", "get-auth-token", "--generate")

    started = time.monotonic()
    laptop.checked("ray", "up", "-y", "cluster/local.yaml", timeout_s=300, log="up.log")
    list_nodes = ("ray", "list", "nodes", f"--address={DASHBOARD}", "--filter=state=ALIVE", "--format=json")

    def is_up():
        code, printed = laptop.run(*list_nodes)
        alive = json.loads(printed[printed.index("[") :]) if code == 0 else []
        return {node["node_ip"] for node in alive} == {HEAD, *WORKERS.values()}

    wait_for("head and two workers", is_up, 180)
    up_s = time.monotonic() - started
    code, refused = laptop.run("ray", "job", "list", f"--address={DASHBOARD}", RAY_AUTH_MODE="disabled")
    assert code != 0, f"nobody gets in without the token: {refused}"

    url = "s3://bucket/run"
    readme = re.search(r"ray job submit .*? -- dgn render s3://bucket/run", (ROOT / "README.md").read_text())
    options = ["--targets", f"classes:0-{NUM_TARGETS - 1}", "--modes", "untrained", "--discriminator", "vgg16-mini"]
    options += ["--width", str(WIDTH), "--updates", "30", "--views", "1", "--precision", "float32", "--workers", "2"]
    options += ["--shard-size", "1", "--batch-size", "1"]
    submitted = time.monotonic()
    job = laptop.start([*readme[0].replace("http://HEAD:8265", DASHBOARD).split(), *options], "job.log")

    def committed():
        return {path.stem for path in s3.rglob("bucket/run/metadata/*.parquet")}

    def busy():
        assert job.poll() is None, "the job ended before a machine could be lost"
        rendering = (name for name in WORKERS if "ray::RenderWorker" in str(laptop.processes(name)))
        return len(committed()) >= 2 and next(rendering, None)

    machine = wait_for("a worker in the middle of the run", busy, 180)
    laptop.checked("sh", "-c", f"kill -KILL $(cat {laptop.folder}/{machine}.pid)")
    lost = time.monotonic()
    assert len(committed()) < NUM_TARGETS - 2, "in the middle"
    failure = wait_for("a note of the failure", lambda: list(s3.rglob("bucket/run/failures/*/*.json")), 300)[0]
    noticed_s = time.monotonic() - lost
    wait_for("the lost shard, made elsewhere", lambda: failure.parent.name in committed(), 300)
    fixed_s = time.monotonic() - lost
    assert not laptop.processes(machine)
    assert job.wait(timeout=300) == 0
    job_s = time.monotonic() - submitted
    verified = laptop.checked("dgn", "verify", url)
    assert f"{NUM_TARGETS} targets expected, " in verified
    lost, twice = lost_and_twice(verified)

    started = time.monotonic()
    laptop.checked("ray", "down", "-y", "cluster/local.yaml", timeout_s=300, log="down.log")
    # `ray down` ends the head's Ray only: a worker's raylet follows after a minute, its log monitor never.
    (survivor,) = WORKERS.keys() - {machine}
    stop = "ssh WORKER dgn/.venv/bin/ray stop"
    assert stop in (ROOT / "cluster" / "local.yaml").read_text()
    ssh = f"ssh -o StrictHostKeyChecking=accept-new {WORKERS[survivor]}"
    laptop.checked("sh", "-c", stop.replace("ssh WORKER", ssh), log="down.log")
    wait_for("no Ray anywhere", lambda: not laptop.processes("head") + laptop.processes(survivor), 60)
    down_s = time.monotonic() - started
    print(f"up {up_s:.0f} s, job {job_s:.0f} s, down {down_s:.0f} s")
    reliability(
        "machine lost under ray up",
        f"SIGKILL to all of one of three machines of `ray up` while it renders, {NUM_TARGETS} targets",
        "its shard was tried again on a machine that was left; the job ended well, `dgn verify` found all",
        noticed_s, fixed_s, lost, twice,
    )  # fmt: skip
