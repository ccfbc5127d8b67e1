"""Makes the reference pages from the code when the site is built, so that they cannot be out of date.

A page holds a line `<!-- generated: NAME -->`, and the Markdown that GENERATED[NAME] returns takes its place.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from enum import Enum
from pathlib import Path
from textwrap import dedent
from typing import Any

import griffe
import typer
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from dgn.cluster.training_settings import TrainingSettings
from dgn.jobs.cli import COMMANDS, build_app
from dgn.runs import layout, schema
from dgn.runs.alike import COLUMNS as ALIKE_COLUMNS
from dgn.runs.audit import COLUMNS as AUDITED
from dgn.runs.comparison import COLUMNS as COMPARED
from dgn.runs.config import RunConfig
from dgn.runs.examples import COLUMNS as EXAMPLE_COLUMNS
from dgn.runs.explanations import COLUMNS as EXPLAINED
from dgn.runs.judgements import JUDGED_COLUMNS
from dgn.statuses import Status

MARK = re.compile(r"<!-- generated: (\w+) -->")
BOUNDS = {"exclusiveMinimum": "above", "minimum": "at least", "exclusiveMaximum": "below", "maximum": "at most"}
KINDS = {str: "TEXT", int: "INT", float: "FLOAT", Path: "FILE"}


def on_page_markdown(markdown: str, **_: Any) -> str:
    """MkDocs calls this for every page."""
    return MARK.sub(lambda match: GENERATED[match[1]](), markdown)


def _table(names: Sequence[str], rows: Iterator[Sequence[str]]) -> str:
    escaped = ([re.sub(r"(`.*?`)|\|", lambda code: code[1] or r"\|", cell) for cell in row] for row in rows)
    lines = [names, ["---"] * len(names), *escaped]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f'<div class="names" markdown>\n\n{table}\n\n</div>'


def settings_table(model: type[BaseModel]) -> str:
    """A row for each setting of a model: name, flag, type, default, description."""
    kinds = model.model_json_schema()["properties"]
    rows = (
        (f"`{name}`", f"`--{name.replace('_', '-')}`", _kind(kinds[name]), _default(field), field.description or "")
        for name, field in model.model_fields.items()
    )
    return _table(("setting", "flag", "type", "default", "description"), rows)


def _kind(described: dict[str, Any]) -> str:
    """A JSON schema in words: `integer, at least 1`."""
    if several := described.get("anyOf"):
        return " or ".join(_kind(one) for one in several if one.get("type") != "null")
    values = described.get("enum") or [described["const"]] if described.keys() & {"enum", "const"} else []
    if values:
        return ", ".join(f"`{value}`" for value in values)
    word = {"array": "list of texts", "string": "text"}.get(described["type"], described["type"])
    return ", ".join([word, *(f"{words} {described[key]:g}" for key, words in BOUNDS.items() if key in described)])


def _default(field: Any) -> str:
    value = ", ".join(field.default) if isinstance(field.default, tuple) else field.default
    return "" if value in (None, PydanticUndefined) else f"`{value}`"


def commands() -> str:
    """A section for each command, in the order of `dgn --help`."""
    sections: list[str] = []
    for name, summary in COMMANDS.items():
        command = typer.main.get_command(build_app(name)).commands[name]  # type: ignore[attr-defined]
        several = getattr(command, "commands", {})
        sections.append(f"## dgn {name}\n\n{summary}\n\n{'' if several else _command(f'dgn {name}', command)}")
        for sub, one in several.items():
            about = " ".join((one.help or "").split())
            sections.append(f"### dgn {name} {sub}\n\n{about}\n\n{_command(f'dgn {name} {sub}', one)}")
    return "\n".join(sections)


def _command(name: str, command: Any) -> str:
    shown = [p for p in command.params if not getattr(p, "hidden", False) and p.name != "help"]
    arguments = [p for p in shown if not p.opts[0].startswith("-")]
    words = [name, *(_argument(p) if p.required else f"[{_argument(p)}]" for p in arguments)]
    usage = " ".join(words + ["[OPTIONS]"] * (len(shown) > len(arguments)))
    return f"```text\n{usage}\n```\n\n{_table(('', 'type', 'meaning'), map(_parameter, shown))}\n"


def _argument(parameter: Any) -> str:
    return (parameter.metavar or parameter.name.upper()).strip("[]")


def _parameter(parameter: Any) -> tuple[str, str, str]:
    is_option = parameter.opts[0].startswith("-")
    name = "/".join([*parameter.opts, *parameter.secondary_opts]) if is_option else _argument(parameter)
    annotation = parameter.type_descriptor.annotation
    kind = (parameter.metavar if is_option else None) or KINDS.get(annotation, "")
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        kind = "|".join(str(one.value) for one in annotation)
    about = (parameter.help or "").replace("\\[", "[")
    if isinstance(parameter.default, Enum | int | float) and not isinstance(parameter.default, bool):
        about += f" (default: {getattr(parameter.default, 'value', parameter.default)})"
    return f"`{name}`", f"`{kind}`" if kind else "", about


def columns() -> str:
    """The rows of a run."""
    rows = ((f"`{c.name}`", f"`{c.type}`", "" if c.is_required else "yes", c.meaning) for c in schema.COLUMNS)
    return _table(("column", "type", "may be null", "meaning"), rows)


def meanings(columns: Sequence[schema.Column]) -> str:
    """A table's columns."""
    return _table(("column", "type", "meaning"), ((f"`{c.name}`", f"`{c.type}`", c.meaning) for c in columns))


def statuses() -> str:
    """The outcomes of targets."""
    return _table(("status", "meaning"), ((f"`{status}`", status.meaning) for status in Status))


def files() -> str:
    """The files of a run, from the docstring of their module."""
    return f"```text\n{dedent((layout.__doc__ or '').partition(chr(10) * 2)[2].rpartition(chr(10) * 2)[0])}\n```"


GENERATED: dict[str, Callable[[], str]] = {
    "run_settings": lambda: settings_table(RunConfig),
    "training_settings": lambda: settings_table(TrainingSettings),
    "commands": commands,
    "columns": columns,
    "judged_columns": lambda: meanings(JUDGED_COLUMNS),
    "example_columns": lambda: meanings(EXAMPLE_COLUMNS),
    "alike_columns": lambda: meanings(ALIKE_COLUMNS),
    "comparison_columns": lambda: meanings(COMPARED),
    "explanation_columns": lambda: meanings(EXPLAINED),
    "audit_columns": lambda: meanings(AUDITED),
    "files": files,
    "statuses": statuses,
}


class HouseStyle(griffe.Extension):
    """Reads this project's docstrings: `Raises: X` on one line, and a field's meaning in the comment behind it."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring:
            obj.docstring.value = re.sub(r"(?m)^(Returns|Raises): (?=\S)", r"**\1:** ", obj.docstring.value)

    def on_attribute_instance(self, *, attr: griffe.Attribute, **_: Any) -> None:
        if not attr.docstring and attr.lineno and attr.lineno == attr.endlineno and not attr.name.startswith("_"):
            line = attr.lines_collection[attr.filepath][attr.lineno - 1]
            if "  # " in line and attr.parent and attr.parent.is_class:
                attr.docstring = griffe.Docstring(line.partition("  # ")[2], parent=attr)
