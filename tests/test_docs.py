"""The documentation builds without a warning, says what the code says, and its commands and snippets run."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
import typer
from markdown.extensions.toc import slugify

import dgn
from dgn.cluster.training_settings import TrainingSettings
from dgn.jobs.cli import COMMANDS, build_app
from dgn.runs.config import RunConfig
from dgn.runs.judgements import JUDGED_SCHEMA
from dgn.runs.schema import COLUMNS
from tests.conftest import WIDTH

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
OUR_FOLDERS = r"(?:dgn|cluster|jobs|tests|docs|tools|benchmarks|examples)/"
SMALL = f"updates=2, width={WIDTH}"


def text_of(page):
    return (ROOT / page).read_text()


def fenced(text, language):
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def our_commands(page):
    """Lines that begin with `dgn`, in code of a page."""
    text = page.read_text()
    lines = "\n".join(fenced(text, "bash")).splitlines() + [
        line for line in text.splitlines() if line[:8] == "    dgn "
    ]
    return [line.split("  #")[0].strip() for line in lines if line.strip().startswith("dgn ")]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder]
    finished = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True
    )
    assert finished.returncode == 0, finished.stderr
    return folder


def test_every_setting_command_column_and_name_is_in_the_reference(site):
    for page, names in {
        "settings": [*RunConfig.model_fields, *TrainingSettings.model_fields],
        "command-line": [f"dgn {name}" for name in COMMANDS],
        "schema": [*(column.name for column in COLUMNS), *JUDGED_SCHEMA.names],
        "python": [
            f"dgn.{name}" for name in ("render", "open_run", "OpenRun", "Picture", "Pictures", "layers", "Layers")
        ],
    }.items():
        content = (site / "reference" / f"{page}.html").read_text()
        assert [name for name in names if name not in content] == []
    content = (site / "reference/python.html").read_text()
    assert [name for name in dgn.__all__ if name not in content] == []


def test_the_site_fetches_nothing_from_elsewhere(site):
    for path in site.rglob("*.html"):
        fetched = re.findall(r"<(?:script|link|img|iframe)\b[^>]*?(?:src|href)=\"?(https?:[^\" >]*)", path.read_text())
        assert fetched == [], path


def test_the_readme_is_short_and_starts_with_a_sheet():
    lines = text_of("README.md").splitlines()
    assert len(lines) <= 120
    assert lines[2].startswith("![")
    assert (ROOT / re.search(r"\((.*)\)", lines[2])[1]).exists()


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md"])
def test_relative_links_lead_somewhere(name):
    """Those of the site's pages are checked by its build."""
    links = re.findall(r"\]\(([^)\s]+)\)|src=\"([^\"]+)\"", text_of(name))
    for link in filter(None, (one or other for one, other in links)):
        if not link.startswith("https://"):
            path, _, anchor = link.partition("#")
            assert (ROOT / path).exists(), link
            headings = re.findall(r"^#+ (.*)", text_of(path), re.MULTILINE) if anchor else []
            assert not anchor or anchor in [slugify(heading, "-") for heading in headings], link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_files_and_tests_that_a_page_names_exist(page):
    for code in re.findall(r"`([^`\n]+)`", page.read_text()):
        for path in re.findall(rf"(?<![\w/.<-]){OUR_FOLDERS}[\w./*-]+", code):
            assert "NAME" in path or any(ROOT.glob(path.rstrip("/"))), path
        if re.fullmatch(r"[\w-]+\.(py|md|yml|yaml|toml|lock|json|ipynb)", code) and page.stem == "CONTRIBUTING":
            assert (ROOT / code).exists(), code
    defined = {
        name for path in (ROOT / "tests").rglob("*.py") for name in re.findall(r"def (test_\w+)", path.read_text())
    }
    assert set(re.findall(r"`(test_\w+)`", page.read_text())) <= defined


@pytest.mark.parametrize("page", [page for page in PAGES if our_commands(page)], ids=lambda page: page.stem)
def test_commands_have_the_options_that_a_page_gives_them(page):
    for line in our_commands(page):
        _, name, *words = shlex.split(line)
        command = typer.main.get_command(build_app(name)).commands[name]
        if hasattr(command, "commands"):
            command = command.commands[words.pop(0)]
        known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        assert {word for word in words if word.startswith("--")} <= known, line


def test_messages_of_the_troubleshooting_are_in_the_code():
    """Piece by piece: what a message inserts is left out."""
    source = "".join(path.read_text() for room in ("dgn", "cluster", "jobs") for path in (ROOT / room).rglob("*.py"))
    source = re.sub(r"\"\s*\n\s*f?\"", "", source)  # a message written over several lines
    inserted = r"\.\.\.|\b[A-Z_]{3,}\b|\b\d[\d.]*\b|'[^']*'|[;:,/]|\b[NM]\b|\bvgg\S+"
    cells = [line.split("|")[1] for line in text_of("docs/troubleshooting.md").splitlines() if line.startswith("| ")]
    messages = [message for cell in cells for message in re.findall("`([^`]+)`", cell) if not message.startswith("dgn")]
    pieces = [piece.strip() for message in messages for piece in re.split(inserted, message)]
    assert len(messages) > 30
    assert [piece for piece in pieces if len(piece) >= 10 and piece not in source] == []


@pytest.fixture(scope="module")
def run(tmp_path_factory, local_ray):
    """The quickstart's run, with fewer updates: its folder `first` in the current one."""
    folder = tmp_path_factory.mktemp("quickstart")
    [line] = [line for line in our_commands(ROOT / "docs/quickstart.md") if line.startswith("dgn render first ")]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        words = [*shlex.split(line)[1:], "--updates", "40", "--width", str(WIDTH), "--workers", "1"]
        words += ["--precision", "float32"]  # on some processors bfloat16 draws classes too weakly to differ
        build_app("render")(words, standalone_mode=False)
        yield dgn.open_run("first")


def snippets(page, **places):
    code = [re.sub(r'preset="draft"', rf'preset="draft", {SMALL}', one) for one in fenced(text_of(page), "python")]
    for place, path in places.items():
        code = [one.replace(place, path) for one in code]
    return code


def test_snippets_of_the_quickstart_run(run):
    names = {}
    for code in snippets("docs/quickstart.md"):
        exec(code, names)
    assert Path("star.png").read_bytes() == names["star"].png
    assert names["run"].url == run.url


def test_snippets_about_reading_a_run_run_and_agree(run):
    """Four programs find the best pictures of a layer that the first answer finds."""
    names = {}
    expected = [picture.target_id for picture in run.best("fc8", 10, mode="untrained")]
    num_answers = 0
    for code in snippets("docs/read-a-run.md", RUN="first"):
        names.pop("best", None)
        exec(code, names)
        if (best := names.get("best")) is not None:
            if not isinstance(best, pa.Table):
                best = pa.Table.from_pandas(best) if hasattr(best, "iloc") else best.to_arrow()
            assert best["target_id"].to_pylist() == expected
            num_answers += 1
    assert num_answers == 4


def test_commands_about_reading_a_run_run(run, dgn):
    """In the page's order: a query of judgements comes after `dgn judge`."""
    lines = our_commands(ROOT / "docs/read-a-run.md")
    assert len(lines) > 15
    for line in lines:
        line = line.replace("RUN", "first").replace("OTHER", "first").replace("NETWORK", "vgg16-mini-b")
        code, out, err = dgn(*shlex.split(line)[1:])
        assert code == 0, err
        assert out, line


def test_a_picture_is_read_out_of_a_pack_as_the_page_on_exports_does(run):
    build_app("export")(["export", "first", "packs", "--format", "tar"], standalone_mode=False)
    names = {}
    [code] = snippets("docs/export.md", FOLDER="packs")
    exec(code, names)
    assert names["png"] == run.picture("fc8-00007-untrained-s0").png
