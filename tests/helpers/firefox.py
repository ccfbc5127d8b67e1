"""A real Firefox for the gallery's tests: node drives it by puppeteer-core over WebDriver BiDi, see firefox.mjs."""

import contextlib
import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.helpers.gallery_tour import Guest

HERE = Path(__file__).parent
PUPPETEER = HERE.parent.parent / "build" / "puppeteer"
BROWSERS = ("firefox-esr", "firefox")


class Firefox:
    """A browser that was started."""

    def __init__(self, process):
        self.process = process

    def call(self, name, *given):
        """Does one of firefox.mjs's calls, and gives its answer."""
        print(json.dumps({"name": name, "given": given}), file=self.process.stdin, flush=True)
        line = self.process.stdout.readline()
        assert line, f"firefox.mjs ended with {self.process.wait()}"
        answer = json.loads(line)
        assert "error" not in answer, f"{name}: {answer['error']}"
        return answer["value"]


@contextlib.contextmanager
def a_firefox():
    """Debian's firefox-esr, or another that is on the path; skips where something is missing."""
    node, path = shutil.which("node"), next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip(f"no Firefox on the path: none of {', '.join(BROWSERS)}")
    if node is None:
        pytest.skip("no node on the path, which drives Firefox")
    if not (PUPPETEER / "node_modules" / "puppeteer-core").is_dir():
        pytest.skip(f"no puppeteer-core in {PUPPETEER}: make puppeteer")
    line = [node, HERE / "firefox.mjs", PUPPETEER, path]
    process = subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield Firefox(process)
    finally:
        process.stdin.close()
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            process.terminate()  # puppeteer then ends Firefox
            process.wait(timeout=30)


class FirefoxVisitor(Guest):
    """As gallery_tour's Visitor, in a page of its own."""

    def __init__(self, firefox, width=1280, height=860):
        self.call = firefox.call
        self.call("open", width, height)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.call("close")

    @property
    def complaints(self):
        return self.call("complaints")

    def evaluate(self, code, given=None):
        return self.call("evaluate", code if given is None else f"({code})({json.dumps(given)})")

    def wait(self, code, timeout_s):
        return self.call("wait", code, timeout_s * 1000)

    def goto(self, url):
        self.call("goto", url)

    def press(self, key):
        self.call("press", key)

    def click(self, selector):
        self.call("click", selector)

    def choose(self, selector, value):
        self.call("choose", selector, value)

    def write(self, selector, text):
        self.call("write", selector, text)

    def drag(self, points):
        """Presses the mouse's button at the first point, and lets it go at the last one. Pixels of the page."""
        self.call("drag", points)

    def wheel(self, px):
        self.call("wheel", 640, 500, px)

    def resize(self, width, height):
        self.call("resize", width, height)

    def back(self):
        self.call("back")

    def forward(self):
        self.call("forward")

    def traffic(self, _until_ms=None):
        return {}  # WebDriver BiDi does not say it for file://
