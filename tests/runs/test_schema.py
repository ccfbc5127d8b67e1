"""The columns of a row: one definition that writers, index and readers keep to."""

import json
import random
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from dgn.errors import DgnError
from dgn.method.loop import RenderResult
from dgn.networks.embedded.drawings import draw
from dgn.networks.specs import parse_targets
from dgn.pictures.codec import encode_png, encode_thumbnail
from dgn.pictures.scoring import score_results
from dgn.runs.index_parts import INDEX_SCHEMA, THUMBS
from dgn.runs.layout import image_key, new_attempt
from dgn.runs.rows import Provenance, make_row
from dgn.runs.schema import COLUMNS, MAY_LACK, QUERY_COLUMNS, SCHEMA, THUMBNAIL, parse, serialise


def scored(network, pixels, spec="classes:heart"):
    """A picture as if it had just been rendered, scored by the network."""
    [block] = parse_targets([spec], network.layers, None)
    picture = torch.tensor(pixels).permute(2, 0, 1).float() / 255
    result = RenderResult(block.target(0), picture, 3.5, (1.0, 3.5), num_updates=2, seconds=0.5)
    return score_results([result], network)[0]


@pytest.fixture
def pixels():
    return draw("heart", np.random.default_rng(0))


@pytest.mark.parametrize("spec", ["classes:heart", "mix:classes:1+2", "filters:conv1_1:3", "group:conv5_1:3*0.5+17"])
def test_a_row_has_exactly_the_columns(spec, mini, pixels):
    picture = scored(mini, pixels, spec)
    png, thumbnail = encode_png(picture.picture_HW3), encode_thumbnail(picture.picture_HW3)
    row = make_row(picture, mini.layers, Provenance("r", 2, "0123abcd", "cpu"), png, thumbnail)
    assert sorted(row) == sorted(column.name for column in COLUMNS)
    assert all(row[column.name] is not None for column in COLUMNS if column.is_required)
    [again] = parse(serialise([row], {})).to_pylist()
    in_float32 = ("optimised_activation", "activation", "unrounded_activation", "probability", "others_sum", "seconds")
    for name, value in row.items():
        if name in in_float32 and value is not None:
            assert again[name] == np.float32(value), name
        elif name not in ("units", "top5", "activation_curve"):
            assert again[name] == value, name


def test_a_row_without_a_picture_has_no_scores(mini, pixels):
    row = make_row(scored(mini, np.where(pixels > 100, np.nan, 0.0)), mini.layers, Provenance("r", 2, "0" * 8, "cpu"))
    assert row["status"] == "nonfinite"
    [again] = parse(serialise([row], {})).to_pylist()
    missing = {name for name, value in again.items() if value is None}
    assert missing == {
        "activation", "unrounded_activation", "rank", "probability", "top5", "others_sum", "file_name", "sha256",
        "bytes", "width", "height", "thumbnail",
    }  # fmt: skip


def test_the_index_has_every_column_but_the_thumbnail():
    assert THUMBNAIL in SCHEMA.names
    assert sorted(INDEX_SCHEMA.names) == sorted([*QUERY_COLUMNS, *(name for name, _ in THUMBS)])
    assert set(QUERY_COLUMNS) == set(SCHEMA.names) - {THUMBNAIL}
    assert {name: INDEX_SCHEMA.field(name).type for name in QUERY_COLUMNS} == {
        column.name: column.type for column in COLUMNS if column.name != THUMBNAIL
    }


def test_columns_are_defined_once_and_explained():
    names = [column.name for column in COLUMNS]
    assert len(set(names)) == len(names)
    assert names == SCHEMA.names
    assert all(column.title and column.meaning for column in COLUMNS)


def test_rows_are_parquet_of_the_documented_schema():
    data = serialise([{"target_id": "x", "attempt": new_attempt(), "shard": 0}], {"run_id": "r", "weights_sha256": "w"})
    table = parse(data)
    assert table.schema.equals(SCHEMA)
    described = json.loads(table.schema.metadata[b"dgn"])
    assert described == {"schema_version": 1, "run_id": "r", "weights_sha256": "w"}
    assert parse(data, ["shard"]).column_names == ["shard"]
    assert pa.types.is_timestamp(table.schema.field("rendered_at").type)


def test_a_column_that_the_schema_lacks_is_a_mistake_in_dgn():
    with pytest.raises(AssertionError, match="a row has columns that the schema lacks"):
        serialise([{"target_id": "x", "colour": "red"}], {})


def of_columns(**columns):
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"PAR1", "it is not a whole Parquet file"),
        (of_columns(target_id=["x"]).replace(b"target_id", b"\xe4arget_id"), "it is not a whole Parquet file"),
        (of_columns(shard=pa.array([0], pa.int32())), "it has no column target_id of type string"),
        (of_columns(target_id=["x"], shard=pa.array([0])), "it has no column shard of type int32"),
    ],
)
def test_other_files_are_not_rows(data, says):
    with pytest.raises(DgnError, match=re.escape(says)):
        parse(data, ["target_id", "shard"])


def test_a_bit_that_changes_is_found_or_changes_no_row():
    """Each page has a checksum, and no version of dgn renames a column."""
    stream = random.Random(0)
    rows = [
        {
            "target_id": f"fc8-{n:05d}-untrained-s0", "shard": 0, "layer": "fc8", "mode": "untrained", "status": "ok",
            "activation": stream.random(), "unit": n, "thumbnail": stream.randbytes(300), "label": f"class {n}",
            "activation_curve": [stream.random() for _ in range(9)],
        }
        for n in range(8)
    ]  # fmt: skip
    data = serialise(rows, {})
    whole, num_found = parse(data), 0
    for place in stream.sample(range(len(data)), 1500):
        changed = data[:place] + bytes([data[place] ^ 1 << stream.randrange(8)]) + data[place + 1 :]
        try:
            assert parse(changed, may_lack=MAY_LACK).equals(whole), place
        except DgnError:
            num_found += 1
    assert num_found > 500


def test_pictures_are_named_by_their_target():
    assert image_key(7, "0123abcd", "fc8-00001-untrained-s0") == "images/000007/0123abcd/fc8-00001-untrained-s0.png"
