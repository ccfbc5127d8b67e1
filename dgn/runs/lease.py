"""Warns when two drivers work on one run.

Commits keep the run correct in that case, but work is done twice.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import random
import threading
import time
import uuid
from types import TracebackType
from typing import Any

from dgn.errors import StoreError
from dgn.runs.layout import LEASE_FILE
from dgn.runs.stores.base import Store
from dgn.text import NOT_JSON, printable

log = logging.getLogger("dgn")
BEAT_S = 3.0  # at most, between two beats
QUIET_S = 20.0  # a lease unchanged for this long belongs to a dead driver
_RANDOM = random.Random()  # its own, so that a user's seed stays a user's
LOOK_S = 0.5  # between looks at a lease while waiting for it


def read_lease(store: Store) -> dict[str, Any]:
    """The contents of `lease.json`; empty if it does not exist."""
    try:
        content = json.loads(store.read(LEASE_FILE))
    except (FileNotFoundError, *NOT_JSON):
        return {}
    return content if isinstance(content, dict) else {}


class Lookout:
    """Sees whether a driver is at work on a run: its lease keeps changing. The first look trusts any lease."""

    def __init__(self, store: Store):
        self.store = store
        self._seen: dict[str, Any] = {}
        self._changed_at = 0.0

    def sees_driver(self) -> bool:
        lease = read_lease(self.store)
        if lease != self._seen:
            self._seen, self._changed_at = lease, time.monotonic()
        return bool(lease) and time.monotonic() - self._changed_at < QUIET_S


def is_driver_at_work(store: Store) -> bool:
    """For what must not happen beside a driver. Watches the lease until it changes, or for QUIET_S."""
    before = read_lease(store)
    until = time.monotonic() + QUIET_S
    while before and time.monotonic() < until:
        time.sleep(LOOK_S)
        if (now := read_lease(store)) != before:
            return bool(now)
    return False


class Lease:
    """While held, `lease.json` names this driver. Warns once about every other driver whose lease is still renewed.

    Hosts' clocks are not compared: a lease that changes between two looks belongs to a living driver.
    """

    def __init__(self, store: Store):
        self.store = store
        self.driver = uuid.uuid4().hex[:8]
        self._beats = 0
        self._seen: dict[str, Any] = {}  # the beats of other drivers when last read
        self._warned: set[str] = set()
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._keep, daemon=True, name="lease")

    def __enter__(self) -> Lease:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._is_over.set()
        self._thread.join(timeout=BEAT_S)  # a store that hangs must not hold up the end of a run

    def _keep(self) -> None:
        while True:
            try:
                self._beat()
            except StoreError as error:  # the lease is advice; the run's own writes report the store's faults
                log.debug("no lease: %s", error)
            # Uneven: of two drivers that beat in step, one would always write over the other's lease before reading it.
            if self._is_over.wait(_RANDOM.uniform(BEAT_S / 2, BEAT_S)):
                break
        try:
            if read_lease(self.store).get("driver") == self.driver:
                self.store.delete(LEASE_FILE)
        except StoreError as error:
            log.debug("lease stays: %s", error)

    def _beat(self) -> None:
        other = read_lease(self.store)
        name, beats = str(other.get("driver", self.driver)), other.get("beats")
        if name != self.driver:
            if self._seen.get(name, beats) != beats and name not in self._warned:
                self._warned.add(name)
                log.warning(
                    "another driver (process %s on %s) is at work on %s: nothing is lost or doubled, but shards may be "
                    "rendered twice; end one of the two",
                    other.get("pid"), printable(other.get("host")), self.store.url,
                )  # fmt: skip
            self._seen[name] = beats
        self._beats += 1
        mine = {"driver": self.driver, "host": platform.node(), "pid": os.getpid(), "beats": self._beats}
        self.store.write(LEASE_FILE, json.dumps(mine).encode())
