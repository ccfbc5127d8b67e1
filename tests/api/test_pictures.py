"""What a notebook shows, and rows in other programs' tables."""

import io

import pytest
from PIL import Image

import dgn
from dgn.runs.schema import QUERY_COLUMNS


def picture(colour="red", **row):
    buffer = io.BytesIO()
    Image.new("RGB", (224, 224), colour).save(buffer, "PNG")
    known = {
        "target_id": "fc8-00004-untrained-s0", "layer": "fc8", "unit": 4, "label": "a <b> star", "mode": "untrained",
        "status": "ok", "reason": None, "activation": 12.25, "rank": 1, "probability": 0.5,
    }  # fmt: skip
    return dgn.Picture(known | row, buffer.getvalue if colour else None)


NOTHING = picture(None, status="nonfinite", reason="the picture has values that are not finite", activation=None)


def test_a_picture_shows_itself():
    one = picture()
    assert Image.open(io.BytesIO(one._repr_png_())).size == (224, 224)
    assert repr(one) == "<a <b> star, untrained: activation 12.2, rank 1>"
    assert one.image.getpixel((0, 0)) == (255, 0, 0)


def test_a_picture_that_was_not_made_says_why():
    assert NOTHING._repr_png_() is None
    assert repr(NOTHING) == "<a <b> star, untrained: nonfinite>"
    with pytest.raises(dgn.DgnError, match="has no picture: the picture has values that are not finite"):
        _ = NOTHING.image


def test_its_file_is_read_when_it_is_looked_at_and_once():
    reads = []
    one = dgn.Picture(picture().row, lambda: reads.append(1) or picture().png)
    assert (repr(one) != "", reads) == (True, [])
    assert one.image.size == one.image.size == (224, 224)
    assert reads == [1]


def test_pictures_are_a_grid_with_text_that_stays_text():
    shown = dgn.Pictures([picture(), NOTHING])._repr_html_()
    assert shown.count("<figure") == 2
    assert "data:image/webp;base64," in shown
    assert "a &lt;b&gt; star" in shown
    assert "<b>" not in shown
    assert "values that are not finite" in shown
    many = dgn.Pictures([picture()] * 70)
    assert many._repr_html_().count("<img") == 60
    assert "and 10 more" in many._repr_html_()


def test_pictures_are_a_sequence():
    pictures = dgn.Pictures([picture("red"), picture("lime"), picture("blue")])
    assert (len(pictures), pictures[1].image.getpixel((0, 0))) == (3, (0, 255, 0))
    assert isinstance(pictures[:2], dgn.Pictures)
    grid = pictures.grid(columns=2)
    assert grid.size == (448, 448)
    assert [grid.getpixel(at) for at in ((0, 0), (224, 0), (0, 224), (447, 447))] == [
        (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255),
    ]  # fmt: skip


def test_rows_go_to_arrow_pandas_and_polars(tmp_path):
    pictures = dgn.Pictures([picture(), NOTHING])
    assert pictures.table().schema.names == list(QUERY_COLUMNS)
    assert pictures.table()["activation"].to_pylist() == [12.25, None]
    assert pictures.to_pandas()["rank"].tolist() == [1, 1]
    assert pictures.to_polars()["label"].to_list() == ["a <b> star"] * 2
    pictures[0].save(tmp_path / "star.png")
    assert Image.open(tmp_path / "star.png").size == (224, 224)
