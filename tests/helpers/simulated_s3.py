"""Writers of one run whose steps are taken in an order that a seed decides, on an S3 that fails between any two.

The store is dgn's own `S3Store`, with its patience; only botocore's client is replaced, by objects in memory. An answer
is lost after the write was applied, a write is applied after its writer has given it up, writers of one key get a 409,
listings come in pages and in any order, and writers die.
"""

import contextlib
import logging
import threading
from datetime import UTC, datetime
from random import Random
from types import SimpleNamespace
from unittest import mock

from botocore.exceptions import ClientError, ConnectionClosedError, ReadTimeoutError

from dgn.errors import StoreError
from dgn.runs import schema
from dgn.runs.layout import image_key, metadata_key, sha256
from dgn.runs.packed import Place, place_of
from dgn.runs.run import Run
from dgn.runs.stores import s3

NUM_SHARDS, NUM_TARGETS, PAGE = 3, 2, 2  # NUM_TARGETS in each shard; PAGE keys in an answer
FAULTS = ("lost answer", "late", "ConditionalRequestConflict", "SlowDown", "AccessDenied", "death", "death after")
STATUSES = {"ConditionalRequestConflict": 409, "SlowDown": 503, "AccessDenied": 403, "PreconditionFailed": 412}
NOW = datetime(2026, 1, 1, tzinfo=UTC)
FAULTY_STEPS = 60  # from then on nothing fails
MOST_STEPS = 2000


class Died(BaseException):
    """A writer's process was killed."""


class Turns:
    """Threads of which one runs at a time, until it calls `step`."""

    def __init__(self, chance):
        self.chance, self.count, self.errors = chance, 0, []
        self.waiting = {}  # semaphores by thread
        self.main = threading.Semaphore(0)

    def step(self):
        """Lets any other thread go first."""
        self.main.release()
        self.waiting[threading.current_thread().name].acquire()

    def run(self, functions):
        threads = [threading.Thread(target=self._body, args=[one], name=str(n)) for n, one in enumerate(functions)]
        self.waiting = {thread.name: threading.Semaphore(0) for thread in threads}
        for thread in threads:
            thread.start()
        while self.waiting:
            self.count += 1
            self.waiting[self.chance.choice(list(self.waiting))].release()
            self.main.acquire()
        for error in self.errors:
            raise error

    def _body(self, function):
        name = threading.current_thread().name
        self.waiting[name].acquire()
        try:
            function()
        except Exception as error:
            self.errors.append(error)
        del self.waiting[name]
        self.main.release()


class Client:
    """What S3Store needs of botocore's client. Checks whatever is written and deleted."""

    def __init__(self, turns):
        self.turns, self.chance = turns, turns.chance
        self.meta = SimpleNamespace(endpoint_url="http://127.0.0.1")
        self.weather = {fault: self.chance.choice([0, 0, 0.05, 0.2]) for fault in FAULTS}
        self.objects, self.late = {}, []
        self.named = {}  # digests of pictures that committed rows name
        self.finished = set()  # attempts that believe that they have committed or lost
        self.excused = set()  # attempts that may leave pictures behind

    def put_object(self, Bucket, Key, Body, IfNoneMatch=None, **_):
        def write():
            if IfNoneMatch and Key in self.objects:
                raise refusal("PreconditionFailed")
            self.apply(Key, bytes(Body))

        self.request(write, Key, is_conditional=IfNoneMatch is not None)

    def get_object(self, Bucket, Key, Range="bytes=0-", **_):
        def read():
            if Key not in self.objects:
                raise refusal("NoSuchKey", 404)
            data = self.objects[Key]
            first, last = Range.removeprefix("bytes=").split("-")
            asked = data[int(first) : int(last or len(data)) + 1] if first else data[-int(last) :]
            return {"Body": SimpleNamespace(read=lambda: asked), "ContentRange": f"bytes 0-0/{len(data)}"}

        return self.request(read, Key)

    def head_object(self, Bucket, Key):
        self.get_object(Bucket, Key)

    def delete_object(self, Bucket, Key):
        def delete():
            assert Key.removeprefix("run/") not in self.named, "a picture that a committed row names is deleted"
            self.objects.pop(Key, None)

        self.request(delete, Key)

    def list_objects_v2(self, Bucket, Prefix, ContinuationToken=""):
        def page():
            found = sorted(key for key in self.objects if key.startswith(Prefix) and key > ContinuationToken)
            shown = found[:PAGE]
            contents = [{"Key": key, "LastModified": NOW} for key in self.chance.sample(shown, len(shown))]
            return {
                "Contents": contents,
                "IsTruncated": len(found) > PAGE,
                "NextContinuationToken": max(shown, default=""),
            }

        return self.request(page, Prefix)

    def request(self, answer, key, is_conditional=False):
        self.turns.step()
        assert self.turns.count < MOST_STEPS, "it does not end"
        self.let_late_ones_arrive()
        fault = next((fault for fault in FAULTS if self.happens(fault)), None)
        if fault == "ConditionalRequestConflict" and not is_conditional:
            fault = None
        if fault in STATUSES:
            if fault == "AccessDenied":
                self.excuse(key)
            raise refusal(fault)
        if fault == "death":
            raise Died
        if fault == "late":
            self.excuse(key)
            self.late.append(answer)
            raise ReadTimeoutError(endpoint_url="")
        found = answer()
        if fault == "death after":
            raise Died
        if fault == "lost answer":
            raise ConnectionClosedError(endpoint_url="")
        return found

    def happens(self, fault):
        return self.turns.count < FAULTY_STEPS and self.chance.random() < self.weather[fault]

    def let_late_ones_arrive(self, all_of_them=False):
        for answer in list(self.late):
            if all_of_them or self.chance.random() < 0.2:
                self.late.remove(answer)
                with contextlib.suppress(ClientError):  # nobody waits for it
                    answer()

    def excuse(self, key):
        if "images/" in key:
            self.excused.add(key.split("/")[-2])

    def apply(self, key, data):
        if "metadata/" in key:
            assert key not in self.objects, "a commit is overwritten"
            for row in schema.parse(data, ["file_name", "sha256"]).to_pylist():
                self.named[row["file_name"]] = row["sha256"]
        self.objects[key] = data
        self.check_pictures()

    def check_pictures(self):
        for name, digest in self.named.items():
            place = place_of(name) or Place(name, 0, None)
            picture = self.objects.get(f"run/{place.key}", b"")[place.start : place.stop]
            assert sha256(picture) == digest, "a committed row names no picture, or another one"


def refusal(code, status=None):
    answer = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status or STATUSES[code]}}
    return ClientError(answer, "")


class Writer:
    """A driver with a worker of its own: renders what is missing until nothing is, whatever else is at work."""

    def __init__(self, run, name, client, is_packed):
        self.run, self.name, self.client, self.num_attempts, self.is_packed = run, name, client, 0, is_packed

    def work(self):
        while missing := self.missing():
            for shard in missing:
                attempt = self.new_attempt()
                try:
                    self.render(shard, attempt)
                    self.client.finished.add(attempt)
                except (StoreError, Died):
                    continue

    def missing(self):
        while True:
            with contextlib.suppress(StoreError, Died):
                return list(self.run.committed(NUM_SHARDS).missing())

    def new_attempt(self):
        self.num_attempts += 1
        return f"{self.name}{self.num_attempts:07d}"

    def render(self, shard, attempt):
        pictures = {image_key(shard, attempt, f"t{shard}-{n}"): f"{self.name} {n}".encode() for n in range(NUM_TARGETS)}
        self.save(pictures)
        self.commit(shard, attempt, pictures)

    def save(self, pictures):
        for key, data in pictures.items() if not self.is_packed else ():
            self.run.store.write(key, data)

    def commit(self, shard, attempt, pictures):
        rows = [
            {
                "run_id": "r", "target_id": key.split("/")[-1], "shard": shard, "attempt": attempt, "status": "ok",
                "file_name": key, "sha256": sha256(data), "bytes": len(data),
            }
            for key, data in pictures.items()
        ]  # fmt: skip
        if self.is_packed:
            rows = [{**row, "file_name": None, schema.PNG: pictures[row["file_name"]]} for row in rows]
        self.run.commit(shard, attempt, rows, {"run_id": "r"})


def simulate(seed, run_class=Run, writer_class=Writer, store_class=s3.S3Store, packed=""):
    """Raises: AssertionError if a target is not there exactly once, or its picture is not the row's.

    `packed`: which writers pack pictures into the committed file, some of the letters a to c.
    """
    chance = Random(seed)
    turns = Turns(chance)
    client = Client(turns)
    nap = SimpleNamespace(sleep=lambda _: None)  # for tenacity, which waits between tries
    with mock.patch.object(s3, "_new_client", return_value=client), mock.patch("tenacity.nap.time", nap):
        run = run_class(store_class("s3://bucket/run"))
        writers = [writer_class(run, name, client, name in packed) for name in "abc"[: chance.randrange(2, 4)]]
        logging.disable(logging.WARNING)
        try:
            turns.run([writer.work for writer in writers])
        finally:
            logging.disable(logging.NOTSET)
    client.let_late_ones_arrive(all_of_them=True)
    check_end(client)


def check_end(client):
    client.check_pictures()
    tables = {key: data for key, data in client.objects.items() if "metadata/" in key}
    assert sorted(tables) == [f"run/{metadata_key(shard)}" for shard in range(NUM_SHARDS)]
    targets = [name for data in tables.values() for name in schema.parse(data, ["target_id"])["target_id"].to_pylist()]
    assert sorted(targets) == [f"t{shard}-{n}.png" for shard in range(NUM_SHARDS) for n in range(NUM_TARGETS)]
    left = {key for key in client.objects if "images/" in key} - {f"run/{name}" for name in client.named}
    owners = {key.split("/")[-2] for key in left}
    assert not owners & (client.finished - client.excused), "a loser left its pictures"
