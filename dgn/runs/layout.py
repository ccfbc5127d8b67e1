"""The layout of a run: its files and their names.

    run.json                                  what the run is: settings, fingerprint, counts; created once
    extensions/<n>.json                       targets that were added later, see `extensions.py`; created once
    images/<shard>/<attempt>/<target_id>.png
    metadata/<shard>.parquet                  THE COMMIT: if this file exists, the shard is whole; with --pack it holds
                                              the pictures, too, see `packed.py`
    failures/<shard>/<attempt>.json           what went wrong, for people
    lease.json                                the driver at work, so that a second one can be warned about
    verified.json                             what an unfinished dgn verify has checked, see `verified.py`
    index/current.json                        which parts the index consists of
    index/<part>/rows.parquet                 all columns but the thumbnail, sorted by layer, mode, falling activation
    index/<part>/thumbs.parquet               thumbnails in the same order
    index/<part>/judged-<...>.parquet         second opinions in the same order
    judgements/<network>-<sha256>/<shard>.parquet   second opinions as they are made
    examples/                                 photographs that excite units most, see `examples.py`
    alike/                                    which pictures look alike, see `alike.py`
    gallery/                                  the page

<shard> has at least six digits.
"""

from __future__ import annotations

import hashlib
import uuid
from datetime import UTC, datetime

RUN_FILE = "run.json"
LEASE_FILE = "lease.json"
VERIFIED_FILE = "verified.json"
INDEX_FILE = "index/current.json"
_TIME = "%Y%m%dT%H%M%SZ"


def metadata_key(shard: int) -> str:
    return f"metadata/{shard:06d}.parquet"


def extension_key(number: int) -> str:
    return f"extensions/{number:06d}.json"


def image_key(shard: int, attempt: str, target_id: str) -> str:
    return f"images/{shard:06d}/{attempt}/{target_id}.png"


def failure_key(shard: int, attempt: str) -> str:
    return f"failures/{shard:06d}/{attempt}.json"


def new_attempt() -> str:
    """Eight hex digits that no other attempt at a shard has."""
    return uuid.uuid4().hex[:8]


def new_run_id(now: datetime) -> str:
    return f"{now:%Y%m%d-%H%M%S}-{uuid.uuid4().hex[:6]}"


def dated_id() -> str:
    """A name for a file of the index: when it is made, and eight hex digits that no other has."""
    return f"{datetime.now(UTC).strftime(_TIME)}-{uuid.uuid4().hex[:8]}"


def made_at(name: str) -> datetime:
    """When a file whose name ends in a `dated_id` was made; the end of time for any other name."""
    try:
        return datetime.strptime(name.rsplit("-", 2)[-2], _TIME).replace(tzinfo=UTC)
    except (ValueError, IndexError):
        return datetime.max.replace(tzinfo=UTC)


def sha256(data: bytes) -> str:
    """SHA-256 as 64 hex digits."""
    return hashlib.sha256(data).hexdigest()
