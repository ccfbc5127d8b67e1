"""Whether a driver is at work, seen by its lease."""

import json
import threading
import time

from dgn.runs import lease
from dgn.runs.lease import LEASE_FILE, Lookout, is_driver_at_work
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
