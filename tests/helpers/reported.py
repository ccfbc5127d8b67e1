"""A run with everything that a report is about: hosts, times, failed attempts, bad pictures, a label like markup."""

from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pyarrow.parquet as pq

from tests.helpers.fake_runs import write_fake_run

EVIL = "<img src=x onerror=alert(1)>"
START = datetime(2026, 3, 1, 8, tzinfo=UTC)
BATCH, BATCH_S = 4, 80.0
HOSTS = {0: ("host-a", "A10G"), 1: ("host-a", "cpu"), 2: (EVIL, "A10G")}  # by the shard's number modulo 3


def write_reported(folder):
    """166 pictures in 11 shards, four failed attempts."""
    labels = [f"class {n}" for n in range(1000)]
    labels[3] = EVIL
    targets = ("classes:0-69", "filters:conv1_1:0-47", "filters:conv3_2:0-47")
    run = write_fake_run(str(folder), targets=targets, shard_size=16, labels=labels, seed=4)

    def change(shard, rows):
        time_as_a_worker_does(shard, rows)
        for n, row in enumerate(rows):
            if shard in (7, 8):
                row["mode"], row["target_id"] = "pretrained", row["target_id"].replace("untrained", "pretrained")
            if row["status"] == "not_converged":
                row["reason"] = f"rank {n + 2} on the saved picture: {EVIL} is first"
            if row["label"] == EVIL:
                row["status"], row["reason"], row["activation"] = "ok", None, 1000.0

    edit_shards(folder, change)
    for shard, cause, host, seconds in ((0, "memory", "host-a", 100), (0, "memory", EVIL, 50), (2, "lost", EVIL, 8)):
        error = f"{cause}: {EVIL} in shard {shard}"
        run.note_failure(shard, f"{seconds:08x}", error, {"cause": cause, "host": host, "seconds": seconds})
    run.note_failure(5, "0000beef", "an older note", {})
    return folder


def edit_shards(folder, change):
    """Changes rows where they lie: change(shard, rows) in place."""
    for path in sorted((folder / "metadata").glob("*.parquet")):
        table = pq.read_table(path)
        rows = table.to_pylist()
        change(int(path.stem), rows)
        pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), path)


def time_as_a_worker_does(shard, rows):
    """Each shard begins at a time that is known; a batch's pictures are saved together, each with its share."""
    now = START + timedelta(minutes=30 * (shard // 3), seconds=shard % 3)
    for n in range(0, len(rows), BATCH):
        now += timedelta(seconds=BATCH_S)
        for row in rows[n : n + BATCH]:
            row["rendered_at"], row["seconds"] = now, BATCH_S / len(rows[n : n + BATCH])
            row["host"], row["device"] = HOSTS[shard % 3]
