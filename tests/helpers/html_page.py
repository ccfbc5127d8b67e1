"""An HTML page as a reader sees it: its texts, tables and figures."""

import re
from html.parser import HTMLParser

import pytest

VOID = {"meta", "img", "br", "path"}


class Page(HTMLParser):
    """What a browser would see: tags with attributes, sections by heading, tables by their cells' texts."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.text, self.tables, self.figures = [], [], "", [], []
        self.cell = None
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")
        if tag == "figure":
            self.figures.append({"text": ""})
        if tag in ("img", "path", "svg") and "figure" in self.open:
            self.figures[-1][tag] = dict(attrs)
        if tag == "br":
            self.handle_data(" ")

    def handle_endtag(self, tag):
        assert tag in VOID or self.open.pop() == tag

    def handle_data(self, data):
        if "style" in self.open:
            return
        self.text += data
        if self.open and self.open[-1] in ("td", "th"):
            self.tables[-1][-1][-1] += data
        if "figure" in self.open:
            self.figures[-1]["text"] += data

    def table(self, first, second):
        """Rows below the head of the table that begins with these two columns."""
        found = [table[1:] for table in self.tables if table[0][:2] == [first, second]]
        assert len(found) == 1
        return found[0]

    def tile(self, name):
        return number(re.search(rf"{name}\s*([\d.,]+)", self.text)[1])


def number(text):
    return float(text.replace(",", ""))


def about(value):
    """Shown with three digits."""
    return pytest.approx(value, rel=6e-3)
