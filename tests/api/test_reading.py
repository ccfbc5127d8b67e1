"""`dgn.open_run`: a run's rows and pictures, from a folder and from S3."""

import pytest

import dgn
from dgn.runs.index import update_index
from tests.helpers.fake_runs import write_fake_run


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    url = str(tmp_path_factory.mktemp("read") / "run")
    run = write_fake_run(url, targets=("classes:0-39", "filters:conv1_1"), seeds=1, shard_size=16)
    update_index(run)
    return url


@pytest.fixture(scope="module")
def run(folder):
    return dgn.open_run(folder)


def test_what_it_is(run, folder):
    assert run.url == folder
    assert run.layers == ["conv1_1", "fc8"]
    assert run.settings["preset"] == "draft"
    assert repr(run) == f"<run of 104 pictures of vgg16, preset draft: {folder}>"


def test_rows_as_arrow_pandas_and_polars(run):
    table = run.table(where=["layer=fc8", "status=ok"], columns=["target_id", "activation"], top=5)
    assert table.column_names == ["target_id", "activation"]
    values = table["activation"].to_pylist()
    assert values == sorted(values, reverse=True)
    assert len(values) == 5
    assert run.to_pandas("layer=fc8", ["activation"], top=5)["activation"].tolist() == pytest.approx(values, rel=1e-6)
    assert run.to_polars("layer=conv1_1").height == 64
    assert run.table().num_rows == 104


def test_the_best_of_a_layer(run):
    best = run.best("conv1_1", 3)
    assert [picture.activation for picture in best] == run.table("layer=conv1_1", top=3)["activation"].to_pylist()
    assert best[0].image.size == (224, 224)
    assert len(run.best("fc8", 4, mode="untrained", by="probability")) == 4
    with pytest.raises(dgn.DgnError, match="no pictures of layer 'fc9': expected one of conv1_1, fc8"):
        run.best("fc9")


@pytest.mark.parametrize(
    ("ask", "says"),
    [
        (lambda run: run.best("fc8", 0), "number of rows: expected an integer of at least 1, got 0"),
        (lambda run: run.best("fc8", "x"), "number of rows: expected an integer of at least 1, got 'x'"),
        (lambda run: run.pictures(top=-1), "number of rows: expected an integer of at least 1, got -1"),
        (lambda run: run.best("fc8", mode="foo"), "unknown mode 'foo': expected one of untrained, pretrained"),
        (
            lambda run: run.pictures("status=okay"),
            "unknown status 'okay': expected one of ok, suppressed, ",
        ),
        (lambda run: run.table(where=5), "where: expected conditions such as 'activation>=20', got 5"),
        (lambda run: run.table(where=[5]), "where: expected conditions such as 'activation>=20', got [5]"),
        (lambda run: run.table(columns="colour"), "unknown column 'colour'"),
        (lambda run: run.best("fc8", 1)[0].save("star.jpg"), "cannot save to star.jpg: pictures are PNG files"),
    ],
)
def test_bad_questions_are_one_line(run, ask, says):
    with pytest.raises(dgn.DgnError) as raised:
        ask(run)
    assert says in str(raised.value)
    assert "\n" not in str(raised.value)


def test_one_column_by_its_name(run):
    assert run.table(columns="layer").column_names == ["layer"]


def test_one_target_by_its_id(run):
    picture = run.picture("fc8-00007-untrained-s0")
    assert (picture.layer, picture.unit) == ("fc8", 7)
    with pytest.raises(dgn.DgnError, match="has no picture 'fc8-00999-untrained-s0' yet"):
        run.picture("fc8-00999-untrained-s0")


def test_pictures_that_fulfil_conditions(run):
    found = run.pictures(["status=not_converged", "layer=fc8"])
    assert {str(picture.status) for picture in found} == {"not_converged"}
    with pytest.raises(dgn.DgnError, match="unknown column 'colour'"):
        run.pictures("colour=red")


def test_a_missing_picture_is_damage(run, folder, tmp_path):
    import shutil

    copy = tmp_path / "run"
    shutil.copytree(folder, copy)
    picture = next(p for p in dgn.open_run(str(copy)).pictures() if p.activation is not None)
    (copy / picture.row["file_name"]).unlink()
    with pytest.raises(dgn.RunDamaged, match="is missing; dgn verify"):
        _ = picture.image


def test_no_run(tmp_path):
    with pytest.raises(dgn.StoreError, match="no run at "):
        dgn.open_run(str(tmp_path / "nothing"))


def test_from_a_bucket(bucket):
    url = f"s3://{bucket}/run"
    write_fake_run(url, targets=("classes:0-3",), shard_size=2)
    run = dgn.open_run(url)
    assert run.table().num_rows == 4
    assert next(iter(run.pictures("status=ok"))).image.size == (224, 224)
