"""Whole runs on Google Cloud Storage and Azure Blob Storage: the servers of tests/helpers/emulators.py."""

import json

import pytest

import dgn as front_door
from dgn.cluster import connection
from dgn.runs.stores import open_store
from tests.helpers.hostile import QUICK

LINE = ["--targets", "classes:0-3", "filters:conv1_1:0", "--shard-size", "2", *QUICK]


@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize(("scheme", "pack"), [("gs", ()), ("az", ("--pack",))])
def test_a_run_is_rendered_and_read(scheme, pack, cloud_bucket, cloud_servers, dgn, monkeypatch):
    url = f"{scheme}://{cloud_bucket(scheme)}/some/run"
    # The tests' Ray was started before the server.
    monkeypatch.setattr(connection, "WORKER_ENVIRONMENT", {**connection.WORKER_ENVIRONMENT, **cloud_servers(scheme)})
    code, _, err = dgn("render", url, *LINE, *pack)
    assert code == 0, err
    code, out, err = dgn("verify", url, "--sample", "1")
    assert code == 0, out + err
    code, out, err = dgn("query", url, "--top", "5", "--format", "json")
    assert len(json.loads(out)) == 5, err
    code, out, err = dgn("query", url, "--sql", "SELECT count(*) AS num FROM rows", "--format", "json")
    assert json.loads(out) == [{"num": 5}], err
    assert len(front_door.open_run(url).best("fc8", 3)) == 3
    store = open_store(url)
    assert len(list(store.list("images"))) == (0 if pack else 5)
    store.delete(max(store.list("metadata")))
    assert "3 of 5" in dgn("status", url)[1]
