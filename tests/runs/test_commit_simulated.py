"""The commit protocol, step by step in every order: tests/helpers/simulated_s3.py checks whatever is written."""

import contextlib
import itertools

import pytest

from dgn.runs import schema
from dgn.runs.layout import metadata_key
from dgn.runs.run import Run
from dgn.runs.stores import KeyExists
from dgn.runs.stores.s3 import S3Store
from tests.helpers.simulated_s3 import Writer, simulate

NUM_SEEDS = 100
ENOUGH = 50  # seeds within which every broken protocol is found


def failure(seed, **broken):
    """What is wrong. None: nothing."""
    try:
        simulate(seed, **broken)
    except Exception as error:  # a broken protocol may raise anything
        return f"{type(error).__name__}: {error}"
    return None


@pytest.mark.parametrize("packed", ["", "b", "abc"])
def test_every_target_is_there_once_whatever_the_store_does(packed):
    failures = {seed: found for seed in range(NUM_SEEDS) if (found := failure(seed, packed=packed))}
    assert failures == {}, f"tests.helpers.simulated_s3.simulate(SEED, packed='{packed}') does it again"


class CommitsFirst(Writer):
    def render(self, shard, attempt):
        saved = {}
        self.save, save = saved.update, self.save
        super().render(shard, attempt)
        save(saved)


class SharesAttempts(Writer):
    """All writers' attempts have the same names."""

    def new_attempt(self):
        return super().new_attempt().replace(self.name, "x")


class DeletesTheWinners(Run):
    """Whoever loses deletes the pictures of the first."""

    def commit(self, shard, attempt, rows, metadata):
        try:
            self.store.create(metadata_key(shard), schema.serialise(rows, metadata))
        except KeyExists:
            for row in schema.parse(self.store.read(metadata_key(shard))).to_pylist():
                if row["attempt"] != attempt:
                    self.store.delete(row["file_name"])


class DeletesItsOwn(Run):
    """Whoever finds a commit believes that it has lost, though the commit may be its own."""

    def commit(self, shard, attempt, rows, metadata):
        try:
            self.store.create(metadata_key(shard), schema.serialise(rows, metadata))
        except KeyExists:
            for row in rows:
                self.store.delete(row["file_name"])


class DeletesNothing(Run):
    def commit(self, shard, attempt, rows, metadata):
        with contextlib.suppress(KeyExists):
            self.store.create(metadata_key(shard), schema.serialise(rows, metadata))


class Overwrites(Run):
    def commit(self, shard, attempt, rows, metadata):
        self.store.write(metadata_key(shard), schema.serialise(rows, metadata))


class LooksThenWrites(Run):
    def commit(self, shard, attempt, rows, metadata):
        if not self.store.exists(metadata_key(shard)):
            self.store.write(metadata_key(shard), schema.serialise(rows, metadata))


class DropsRows(Run):
    """The last target's row is missing."""

    def commit(self, shard, attempt, rows, metadata):
        super().commit(shard, attempt, rows[:-1], metadata)


class TrustsPictures(Run):
    """A shard with pictures counts as whole."""

    def committed(self, num_shards):
        committed = super().committed(num_shards)
        for key in self.store.list("images"):
            committed.add(int(key.split("/")[1]))
        return committed


class TakesEveryRefusalForALoss(S3Store):
    """Also a conflict of writers, of whom none may have won."""

    def create(self, key, data):
        try:
            self.client.put_object(**self._place(key), Body=data, IfNoneMatch="*")
        except Exception as error:
            raise KeyExists(key) from error


class TakesSilenceForSuccess(S3Store):
    """A picture whose write got no answer counts as written."""

    def write(self, key, data):
        with contextlib.suppress(self.foreign):
            self.client.put_object(**self._place(key), Body=data)


BROKEN = [
    CommitsFirst, SharesAttempts, DeletesTheWinners, DeletesItsOwn, DeletesNothing, Overwrites, LooksThenWrites,
    DropsRows, TrustsPictures, TakesEveryRefusalForALoss, TakesSilenceForSuccess,
]  # fmt: skip
PARTS = {Writer: "writer_class", Run: "run_class", S3Store: "store_class"}


@pytest.mark.parametrize("broken", BROKEN, ids=lambda broken: broken.__name__)
def test_a_broken_protocol_is_found(broken):
    part = next(name for base, name in PARTS.items() if issubclass(broken, base))
    assert any(failure(seed, **{part: broken}) for seed in range(ENOUGH))


def test_a_seed_is_the_same_run_again():
    seeds = itertools.count()
    seed = next(seed for seed in seeds if failure(seed, run_class=DeletesItsOwn))
    assert failure(seed, run_class=DeletesItsOwn) == failure(seed, run_class=DeletesItsOwn)
    assert failure(seed) is None
