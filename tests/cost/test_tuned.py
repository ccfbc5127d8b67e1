"""The file that keeps what was tuned."""

from dataclasses import asdict, replace

import pytest

from dgn.cost.tuned import check_writable, load_tuned, store_tuned, tuned_path
from dgn.errors import DgnError
from tests.helpers.tuned import HERE, TUNED


def test_entries_of_other_devices_are_kept(tmp_path):
    path = tmp_path / "cache" / "tuned.json"
    assert load_tuned(path) == {}
    other = replace(TUNED, device="another", precision="bfloat16")
    check_writable(path)
    store_tuned(other, path)
    store_tuned(replace(TUNED, is_complete=False), path)
    store_tuned(TUNED, path)
    assert load_tuned(path) == {"another": other, HERE: TUNED}
    assert [one.name for one in path.parent.iterdir()] == ["tuned.json"]


def test_where_it_is_stored(monkeypatch):
    monkeypatch.delenv("DGN_TUNED")
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert str(tuned_path()) == "/cache/dgn/tuned.json"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/dev/null")  # as a daemon's may be
    assert str(tuned_path()) == "/dev/null/.cache/dgn/tuned.json"
    assert load_tuned(tuned_path()) == {}


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    for write in (check_writable, lambda path: store_tuned(TUNED, path)):
        with pytest.raises(DgnError, match=r"cannot write .*/file/tuned\.json"):
            write(tmp_path / "file" / "tuned.json")


def test_the_winner_is_the_fastest_form_and_size():
    [timing] = TUNED.timings
    assert replace(TUNED, is_winograd=False).is_winner(timing)
    for change in ({"batch_size": 4}, {"mode": "pretrained"}, {"precision": "bfloat16"}, {"is_winograd": True}):
        assert not replace(TUNED, is_winograd=False).is_winner(replace(timing, **change))
    assert set(asdict(timing)) == {"mode", "precision", "is_winograd", "batch_size", "seconds"}
