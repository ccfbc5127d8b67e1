"""Files of labels: each way to write the same three, and what is refused."""

import pytest

from dgn.errors import DgnError
from dgn.networks.labels import parse_labels

THREE = ("cat", "dog, small", "Käfer")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("l.txt", "cat\ndog, small\nKäfer\n"),
        ("l.txt", "\ufeffcat\ndog, small\nKäfer"),
        ("l.txt", "cat\r\n  dog, small \r\nKäfer\r\n\r\n\r\n"),
        ("labels", "cat\ndog, small\nKäfer\n"),
        ("l.json", '["cat", "dog, small", "Käfer"]'),
        ("L.JSON", '\ufeff["cat", "dog, small", "K\\u00e4fer"]'),
        ("l.json", '{"0": "cat", "1": "dog, small", "2": "Käfer"}'),
        ("l.json", '{"2": "Käfer", "1": "dog, small", "0": "cat"}'),
        ("l.json", '{"cat": 0, "Käfer": 2, "dog, small": 1}'),
        ("l.json", '{"model": "x", "id2label": {"0": "cat", "2": "Käfer", "1": "dog, small"}, "label2id": {"cat": 0}}'),
        ("l.json", '{"id2label": ["cat", "dog, small", "Käfer"]}'),
        ("l.csv", 'cat\n"dog, small"\nKäfer\n'),
        ("l.csv", 'label\ncat\n"dog, small"\nKäfer\n'),
        ("l.csv", '0,cat\n1,"dog, small"\n2,Käfer\n'),
        ("l.csv", '2,Käfer\n0, cat\n1,"dog, small"\n\n'),
        ("l.csv", '\ufeffindex,label\n1,"dog, small"\n0,cat\n2,Käfer\n'),
        ("l.csv", 'Name,ID\r\nKäfer,2\r\n"dog, small",1\r\ncat,0\r\n'),
        ("l.csv", ',label\n1,"dog, small"\n0,cat\n2,Käfer\n'),  # as pandas writes an index
        ("l.csv", 'idx,name\n1,"dog, small"\n0,cat\n2,Käfer\n'),
        ("l.csv", 'wnid,label\nn01,cat\nn02,"dog, small"\nn03,Käfer\n'),
        ("l.csv", 'wnid,index,label\nn03,2,Käfer\nn01,0,cat\nn02,1,"dog, small"\n'),
    ],
)
def test_ways_to_write_three_labels(name, text):
    assert parse_labels(text.encode(), name) == THREE


def test_labels_may_be_the_same():
    assert parse_labels(b'["cardigan", "cardigan"]', "l.json") == ("cardigan", "cardigan")


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("l.txt", b"", "labels l.txt: it is empty; expected one label per class"),
        ("l.txt", b"\n \n", "it is empty"),
        ("l.txt", b"cat\n\ndog\n", r"class 1 \(from 0\) has an empty label"),
        ("l.txt", b"caf\xe9\n", "UnicodeDecodeError"),
        ("l.json", b"[]", "it is empty"),
        ("l.json", b"{}", "it is empty"),
        ("l.json", b'["cat", ""]', r"class 1 \(from 0\) has an empty label"),
        ("l.json", b'["cat", 3]', "neither a list of labels nor numbers with labels"),
        ("l.json", b'[["n01440764", "tench"]]', "neither a list of labels"),
        ("l.json", b'"cat"', "neither a list of labels"),
        ("l.json", b"null", "neither a list of labels"),
        ("l.json", b"cat\ndog\n", "JSONDecodeError"),
        ("l.json", b"[" * 100_000, "RecursionError"),
        ("l.json", b'{"0": "cat", "2": "dog"}', "its numbers are not 0 to 1, each once"),
        ("l.json", b'{"1": "cat", "2": "dog"}', "its numbers are not 0 to 1, each once"),
        ("l.json", b'{"0": "cat", "00": "dog", "1": "cow"}', "its numbers are not 0 to 2, each once"),
        ("l.json", b'{"0": "cat", "0": "dog", "1": "cow"}', "an object of it has a key twice"),
        ("l.json", b'{"cat": 0, "dog": 0, "cow": 1}', "its numbers are not 0 to 2, each once"),
        ("l.json", b'{"cat": 0, "dog": true}', "neither a list of labels"),
        ("l.json", b'{"zero": "cat"}', "invalid literal for int"),
        ("l.csv", b"", "it is empty"),
        ("l.csv", b"label\n", "it is empty"),
        ("l.csv", b"0,cat\n0,dog\n1,cow\n", "its numbers are not 0 to 2, each once"),
        ("l.csv", b"index,label\n0,cat\n2,dog\n", "its numbers are not 0 to 1, each once"),
        ("l.csv", b"label\ncat\ndog, small\n", "row 3 has 2 cells, row 1 has 1"),
        ("l.csv", b"0,cat\n1\n", "row 2 has 1 cell, row 1 has 2"),
        ("l.csv", b"0,cat\n1,\n", r"class 1 \(from 0\) has an empty label"),
        ("l.csv", b"n01,cat\nn02,dog\n", "invalid literal for int"),
        ("l.csv", b'"cat\n', "Error: unexpected end of data"),
    ],
)
def test_other_files_are_refused_in_one_line(name, data, says):
    with pytest.raises(DgnError, match=says) as caught:
        parse_labels(data, name)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"labels {name}: ")
    assert "expected one label per " in message
