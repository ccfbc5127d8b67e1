"""Whole runs on an S3 that fails: every fault is retried once and seen, and nothing is lost or rendered twice.

S3 is a real server behind a proxy that injects the faults.
"""

import os
import time
from functools import partial
from pathlib import Path

import pytest

from dgn.cluster.context import RunContext
from dgn.cluster.driver import Driver
from dgn.cluster.rules import Rules, Workers
from dgn.networks.registry import network_named
from dgn.networks.weights import load_weights
from dgn.runs.config import RunConfig
from dgn.runs.plan import fingerprint, make_plan
from dgn.runs.run import Run
from dgn.runs.stores import open_store, patience
from tests.helpers import fakes
from tests.helpers.faulty_s3 import ANY_REQUEST, FaultyS3
from tests.helpers.reliability import lost_and_twice

NO_STRAGGLERS = 1e9  # a duplicate that is killed at the end would leave pictures for gc

# For the table of docs/reliability.md the waits are the real ones, and each fault has a run of its own.
IS_FOR_THE_TABLE = "DGN_RELIABILITY" in os.environ
FIRST_WAIT_S, LONGEST_WAIT_S = (patience.FIRST_WAIT_S, patience.LONGEST_WAIT_S) if IS_FOR_THE_TABLE else (0.1, 0.2)
FAULTS = [(fault,) for fault in ANY_REQUEST] if IS_FOR_THE_TABLE else [ANY_REQUEST]


@pytest.fixture
def faulty(bucket, s3_server, monkeypatch):
    """A proxy in front of the S3 server; stores that this process opens go through it."""
    monkeypatch.setattr(patience, "FIRST_WAIT_S", FIRST_WAIT_S)
    monkeypatch.setattr(patience, "LONGEST_WAIT_S", LONGEST_WAIT_S)
    with FaultyS3(s3_server["AWS_ENDPOINT_URL"]) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        yield proxy


class Losses:
    """Runs of eight shards of two targets through the proxy, and when their workers tried again."""

    def __init__(self, proxy, url, folder):
        self.proxy, self.folder = proxy, folder
        config = RunConfig(targets=("classes:0-15",), discriminator="vgg16-mini", shard_size=2)
        plan = make_plan(config, network_named("vgg16-mini").layers)
        sha256 = load_weights("vgg16-mini").sha256
        identity = fingerprint(plan, config.render_config("float32"), network_named("vgg16-mini"), sha256, None)
        self.run = Run(open_store(url))
        self.info = self.run.start(identity, config, plan.num_targets, plan.num_shards)
        self.context = RunContext(url, self.info.run_id, plan, config.render_config("float32"), identity, 1)

    def render(self, num_workers=2):
        """Returns: the progress, and when the run was whole."""
        endpoint, waits, observer = (
            self.proxy.url,
            (FIRST_WAIT_S, LONGEST_WAIT_S),
            partial(note_retry, str(self.folder)),
        )

        class ThroughProxy(fakes.FakeWorker):  # by value to the workers, which belong to a Ray that other tests share
            def __init__(self, *arguments):
                os.environ["AWS_ENDPOINT_URL"] = endpoint
                patience.FIRST_WAIT_S, patience.LONGEST_WAIT_S = waits
                patience.retry_observers.append(observer)
                super().__init__(*arguments)

        workers, rules = Workers(num_workers, 0, 1), Rules(straggler_factor=NO_STRAGGLERS)
        driver = Driver(
            self.run, self.info, self.context, None, None, workers, worker_class=ThroughProxy, rules=rules
        )  # fmt: skip
        return driver.loop(), time.monotonic()

    @property
    def retried(self):
        """When, in order."""
        return sorted(int(path.name.partition("-")[0]) / 1e9 for path in self.folder.iterdir())


def note_retry(folder, operation, error):
    Path(folder, f"{time.monotonic_ns()}-{operation}-{os.getpid()}").touch()


@pytest.fixture
def losses(faulty, bucket, tmp_path, local_ray):
    folder = tmp_path / "retried"
    folder.mkdir()
    observer = partial(note_retry, str(folder))
    patience.retry_observers.append(observer)
    yield Losses(faulty, f"s3://{bucket}/run", folder)
    patience.retry_observers.remove(observer)


def assert_whole(losses, progress, dgn):
    """Nothing left over, every sha256 right. Returns how many targets are lost and how many twice."""
    url = losses.run.store.url
    assert (progress.shards_done, progress.quarantined, progress.retries) == (8, [], 0)
    assert len(list(losses.run.store.list("images"))) == 16
    assert list(losses.run.store.list("failures")) == []
    code, out, err = dgn("verify", url, "--sample", 0)
    assert code == 0, err
    return lost_and_twice(out)


NAMES = {
    "SlowDown": "S3 answers SlowDown", "InternalError": "S3 answers 500", "reset before": "S3 resets before the write",
    "reset after": "S3 resets after the write was applied",
}  # fmt: skip


@pytest.mark.parametrize("faults", FAULTS, ids=", ".join)
def test_a_run_outlasts_the_fault(faults, losses, faulty, dgn, reliability):
    for fault in faults:
        faulty.inject(fault, times=6, method="PUT", key="/images/")
        faulty.inject(fault, times=3, method="PUT", key="/metadata/")
        faulty.inject(fault, times=2, method="GET", key="list-type=2")
    progress, whole_at = losses.render(num_workers=1)
    assert faulty.num_waiting == 0
    assert len(losses.retried) == len(faulty.injected) == 11 * len(faults)
    outcome = assert_whole(losses, progress, dgn)
    if IS_FOR_THE_TABLE:
        [fault] = faults
        reliability(
            NAMES[fault], "11 times in a run: 6 pictures, 3 commits, 2 listings", "11 retries, nothing rendered again",
            losses.retried[0] - faulty.injected[0], whole_at - faulty.injected[0], *outcome,
        )  # fmt: skip
    assert outcome == (0, 0)


def test_a_run_outlasts_truncated_reads(losses, faulty, dgn, reliability):
    """A commit whose answer was lost is read back; that read, the listings and verify's reads end in the middle."""
    faulty.inject("reset after", times=2, method="PUT", key="/metadata/")
    faulty.inject("truncate", times=3, method="GET", key="/metadata/0")
    faulty.inject("truncate", times=2, method="GET", key="list-type=2")
    progress, whole_at = losses.render(num_workers=1)
    assert faulty.num_waiting == 0
    assert len(losses.retried) == len(faulty.injected) == 7
    faulty.inject("truncate", times=3, method="GET", key="/images/")
    outcome = assert_whole(losses, progress, dgn)
    assert faulty.num_waiting == 0
    reliability(
        "S3 truncates a read", "3 reads of commits, 2 listings, 3 pictures", "8 retries, no half read taken for whole",
        losses.retried[0] - faulty.injected[0], whole_at - faulty.injected[0], *outcome,
    )  # fmt: skip


@pytest.mark.parametrize("seconds", [3, pytest.param(120, marks=pytest.mark.slow)])
def test_a_run_outlasts_s3_being_away(seconds, losses, faulty, dgn, reliability):
    """Connections are reset in the middle of the run, then refused."""
    faulty.inject("away", method="PUT", key="/images/000003", seconds=seconds)
    progress, whole_at = losses.render()
    assert whole_at - faulty.injected[0] > seconds
    outcome = assert_whole(losses, progress, dgn)
    reliability(
        "S3 is away", f"{seconds} s in the middle of a run", f"{len(losses.retried)} retries, nothing rendered again",
        losses.retried[0] - faulty.injected[0], whole_at - faulty.injected[0], *outcome,
    )  # fmt: skip
