"""Whether a driver is at work, seen by its lease."""

import json
import threading
import time

from dgn.runs import lease
from dgn.runs.lease import LEASE_FILE, Lease, Lookout, is_driver_at_work, read_lease
from dgn.runs.stores import open_store


def test_a_driver_is_at_work_while_its_lease_changes(tmp_path, monkeypatch):
    monkeypatch.setattr(lease, "QUIET_S", 0.15)
    store = open_store(str(tmp_path))
    lookout = Lookout(store)
    assert not lookout.sees_driver()
    for beats in (1, 2):
        store.write(LEASE_FILE, json.dumps({"driver": "a", "beats": beats}).encode())
        assert lookout.sees_driver()
        time.sleep(0.2)
        assert not lookout.sees_driver(), "killed, and its lease has stayed"
    store.delete(LEASE_FILE)
    assert not lookout.sees_driver()


def test_a_driver_whose_store_is_slow_is_at_work_too(tmp_path, monkeypatch):
    """Its next beat comes late, but before a lease counts as a dead driver's; one that gives its lease up is not."""
    monkeypatch.setattr(lease, "LOOK_S", 0.05)
    monkeypatch.setattr(lease, "QUIET_S", 5.0)
    store = open_store(str(tmp_path))
    assert not is_driver_at_work(store)
    for change, is_at_work in (
        (lambda: store.write(LEASE_FILE, b'{"driver": "a", "beats": 2}'), True),
        (lambda: store.delete(LEASE_FILE), False),
    ):
        store.write(LEASE_FILE, b'{"driver": "a", "beats": 1}')
        late = threading.Timer(0.4, change)
        late.start()
        assert is_driver_at_work(store) == is_at_work
        late.join()
    monkeypatch.setattr(lease, "QUIET_S", 0.2)
    store.write(LEASE_FILE, b'{"driver": "a", "beats": 1}')
    assert not is_driver_at_work(store), "killed, and its lease has stayed"


def test_two_drivers_that_start_in_step_warn_about_each_other(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(lease, "BEAT_S", 0.05)
    store = open_store(str(tmp_path))
    until = time.monotonic() + 60
    with Lease(store), Lease(store):
        while len(caplog.records) < 2 and time.monotonic() < until:
            time.sleep(0.01)
    assert [record.getMessage()[:14] for record in caplog.records] == ["another driver"] * 2
    assert read_lease(store) == {}, "the last one cleans up"
