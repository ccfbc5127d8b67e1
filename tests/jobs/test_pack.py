"""`dgn render --pack`: the same pictures in fewer files, for every command that reads them."""

import io
import tarfile

import pyarrow.parquet as pq
import pytest
from PIL import Image

from dgn.jobs.galleries.build import build_page
from dgn.runs import packed, schema
from dgn.runs.run import Run
from tests.conftest import WIDTH
from tests.helpers.fake_runs import write_fake_run
from tests.helpers.gallery_tour import LOADED, address, range_server, visit
from tests.helpers.packing import pack
from tests.helpers.rows import assert_one_line, contents, every_row, names_in

SETTINGS = ["--targets", "classes:0-5", "--discriminator", "vgg16-mini", "--width", WIDTH, "--updates", "3"]
SETTINGS += ["--precision", "float32", "--workers", "1", "--shard-size", "2"]
PIXELS = """() => {
    const image = document.querySelector('dialog figure img')
    const canvas = new OffscreenCanvas(image.naturalWidth, image.naturalHeight).getContext('2d')
    canvas.drawImage(image, 0, 0)
    return [...canvas.getImageData(0, 0, image.naturalWidth, image.naturalHeight).data]
}"""
CHANCE = {"run_id", "attempt", "seconds", "rendered_at", "file_name"}  # and where the picture lies


@pytest.fixture(scope="module")
def packed_run(rendered, tmp_path_factory):
    return pack(rendered, tmp_path_factory.mktemp("packed") / "run")


def pictures(folder):
    run = Run.at(str(folder))
    return {row["target_id"]: run.picture(row["file_name"], row["sha256"]) for row in every_row(folder)}


@pytest.mark.usefixtures("local_ray")
def test_a_packed_run_has_the_same_pictures_and_stays_packed(dgn, tmp_path):
    plain, other = tmp_path / "plain", tmp_path / "packed"
    assert dgn("render", plain, *SETTINGS)[0] == 0
    assert dgn("render", other, *SETTINGS, "--pack")[0] == 0
    assert sorted(contents(other).keys() - contents(plain).keys()) == [
        name for name in contents(other) if name.startswith("index/") and not name.endswith("current.json")
    ]
    assert not (other / "images").exists()
    assert pictures(other) == pictures(plain)
    for ours, theirs in zip(every_row(other), every_row(plain), strict=True):
        assert {**ours, **dict.fromkeys(CHANCE)} == {**theirs, **dict.fromkeys(CHANCE), "png": ours["png"]}
    (other / "metadata" / "000001.parquet").unlink()
    assert dgn("resume", other)[0] == 0  # which packs what is missing
    (other / "metadata" / "000000.parquet").unlink()
    assert dgn("render", other, *SETTINGS)[0] == 0  # so does this
    assert not (other / "images").exists()
    assert pictures(other) == pictures(plain)
    (plain / "metadata" / "000002.parquet").unlink()
    assert dgn("render", plain, *SETTINGS, "--pack")[0] == 0  # a run may hold both
    assert schema.PNG in pq.read_schema(plain / "metadata" / "000002.parquet").names
    assert pictures(plain) == pictures(other)
    assert dgn("verify", plain)[1] == "6 targets expected, 6 found, 0 duplicate or stray, 6 scored again, 0 problems\n"


def test_verify_finds_a_bit_that_changed(packed_run, tmp_path, dgn):
    assert "8 scored again, 0 problems" in dgn("verify", packed_run)[1]
    row = every_row(packed_run)[0]
    place = packed.place_of(row["file_name"])
    path = packed_run / place.key
    whole = path.read_bytes()
    try:
        path.write_bytes(whole[: place.stop - 9] + bytes([whole[place.stop - 9] ^ 1]) + whole[place.stop - 8 :])
        code, out, _ = dgn("verify", packed_run)
    finally:
        path.write_bytes(whole)
    assert code == 1
    assert f"{row['file_name']} is not its row's picture" in out
    assert "8 found" in out
    assert "1 problem" in out


def test_commands_read_packed_pictures(rendered, packed_run, tmp_path, dgn):
    assert dgn("index", packed_run)[0] == 0
    assert dgn("query", packed_run, "--copy-to", tmp_path / "copies")[0] == 0
    copies = {path.stem: path.read_bytes() for path in (tmp_path / "copies").iterdir()}
    assert copies == pictures(rendered) == pictures(packed_run)
    sql = f"SELECT target_id, file_name FROM rows WHERE target_id = '{min(copies)}'"
    assert dgn("query", packed_run, "--sql", sql, "--copy-to", tmp_path / "one")[0] == 0
    assert names_in(tmp_path / "one") == [f"{min(copies)}.png"]
    answer = dgn("query", packed_run, "--sql", "SELECT file_name FROM rows", "--copy-to", tmp_path / "none")
    assert_one_line(answer, 2, "--copy-to needs the column target_id", "SELECT it too")
    for target_id in ("'../x'", "'x' || chr(0)", "7"):
        sql = f"SELECT {target_id} AS target_id, file_name FROM rows"
        answer = dgn("query", packed_run, "--sql", sql, "--copy-to", tmp_path / "none")
        assert_one_line(answer, 2, "cannot name a file: expected fc8-00668-untrained-s0")
    assert dgn("export", packed_run, tmp_path / "tar", "--format", "tar")[0] == 0
    [path] = (tmp_path / "tar").glob("*.tar")
    with tarfile.open(fileobj=io.BytesIO(path.read_bytes())) as tar:
        exported = [tar.extractfile(name).read() for name in tar.getnames() if name.endswith(".png")]
    assert sorted(exported) == sorted(copies.values())
    for folder in (rendered, packed_run):
        assert dgn("sheet", folder, tmp_path / f"{folder.parent.name}.png")[0] == 0
    sheets = [path.read_bytes() for path in tmp_path.glob("*.png")]
    assert len(sheets) == 2
    assert sheets[0] == sheets[1]
    before = contents(packed_run)
    assert dgn("gc", packed_run, "--uncommitted", "--older-than", 0)[1].startswith("0 pictures and 0 unfinished")
    assert contents(packed_run) == before


def test_the_page_shows_packed_pictures_from_a_web_server(tmp_path, browser):
    write_fake_run(str(tmp_path / "files"), targets=["classes:0-7"], shard_size=4)
    folder = pack(tmp_path / "files", tmp_path / "packed")
    build_page(Run.at(str(folder)), None)
    rows = [row for row in every_row(folder) if row["file_name"]]
    first, second = rows[0], rows[-1]
    with range_server(folder) as url, visit(browser, f"{url}/gallery/index.html") as visitor:
        for row in (first, second):
            visitor.go(f"#id={row['target_id']}")
            visitor.when(f"document.querySelector('dialog[open]')?.innerText.includes('{row['target_id']}')")
            visitor.when(f"[...document.querySelectorAll('dialog figure img')].some({LOADED})")
            shown = visitor.evaluate(PIXELS)
            assert bytes(shown) == Image.open(io.BytesIO(row["png"])).convert("RGBA").tobytes()
            assert visitor.evaluate("document.querySelector('figcaption a').download") == f"{row['target_id']}.png"
        assert not visitor.complaints, visitor.complaints
    with visit(browser, address(folder, f"#id={first['target_id']}")) as visitor:
        visitor.when("document.querySelector('dialog[open] figure .box')")
        says = visitor.text("dialog figure .box")
        assert "packed into metadata/000000.parquet" in says
        assert visitor.count("dialog figcaption a") == 0
        assert "dgn gallery serve RUN" in says
