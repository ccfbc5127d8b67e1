"""Who tells whether a driver is at work."""

import json
import time

from cluster import lease
from cluster.lease import LEASE_FILE, Lookout
from cluster.storage import open_store


def test_a_driver_is_at_work_while_its_lease_changes(tmp_path, monkeypatch):
    monkeypatch.setattr(lease, "QUIET_S", 0.3)
    store = open_store(str(tmp_path))
    lookout = Lookout(store)
    assert not lookout.sees_driver()
    for beats in (1, 2):
        store.write(LEASE_FILE, json.dumps({"driver": "a", "beats": beats}).encode())
        assert lookout.sees_driver()
        time.sleep(0.4)
        assert not lookout.sees_driver(), "killed, and its lease has stayed"
    store.delete(LEASE_FILE)
    assert not lookout.sees_driver()
