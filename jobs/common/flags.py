"""Command-line flags derived from settings models, which alone define names, types, help and defaults."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import typer
import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from dgn.errors import DgnError
from dgn.runs.validation import Settings, validated


def with_settings(model: type[BaseModel], *names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Gives a command a flag for each of a model's settings, or for those named.

    The command gets one argument `settings` with the text of the flags that were given. It must validate them, and
    pydantic then converts the text.
    """
    chosen = names or tuple(model.model_fields)

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(command, eval_str=True)
        own = [parameter for name, parameter in signature.parameters.items() if name != "settings"]
        added = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=_flag(name, model))
            for name in chosen
        ]

        @wraps(command)
        def run(**arguments: Any) -> None:
            given = {name: arguments.pop(name, None) for name in chosen}
            command(**arguments, settings={name: value for name, value in given.items() if value is not None})

        del run.__wrapped__  # or inspect would see the command's own signature
        run.__signature__ = inspect.Signature([*own, *added])  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in [*own, *added]}
        return run

    return decorate


def _flag(name: str, model: type[BaseModel]) -> Any:
    """The annotation of a setting's flag."""
    field = model.model_fields[name]
    help_text = f"{field.description} {_default(field)}".strip()
    written = f"--{name.replace('_', '-')}"
    if bool in get_args(field.annotation):
        return Annotated[bool | None, typer.Option(written, help=help_text)]
    option = typer.Option(written, help=help_text, metavar=_metavar(field))
    kind = list[str] if name == "targets" else str
    return Annotated[kind | None, option]


def _default(field: FieldInfo) -> str:
    """`(default: ...)`; nothing for None, because the description gives its meaning."""
    if field.default is None:
        return ""
    value = field.default
    return f"(default: {', '.join(value) if isinstance(value, tuple) else value})"


def _metavar(field: FieldInfo) -> str:
    is_one = get_origin(field.annotation) is Literal  # its arguments are words, not types
    kinds = (field.annotation,) if is_one else get_args(field.annotation) or (field.annotation,)
    words: list[str] = []
    for kind in (kind for kind in kinds if kind is not type(None)):
        if get_origin(kind) is Annotated:
            kind = get_args(kind)[0]
        if get_origin(kind) is Literal:
            words += get_args(kind)
        else:
            words.append({int: "INT", float: "FLOAT"}.get(kind, "TEXT"))
    return "|".join(dict.fromkeys(words))


def load_settings(model: type[Settings], path: Path | None, given: dict[str, Any]) -> Settings:
    """The YAML file's settings, overridden by `given`.

    Raises: DgnError, naming the first wrong setting.
    """
    settings: Any = {}
    if path is not None:
        try:
            settings = yaml.safe_load(path.read_text()) or {}
        except (OSError, UnicodeDecodeError) as error:
            raise DgnError(
                f"cannot read the settings in {path}: {getattr(error, 'strerror', None) or error}"
            ) from error
        except yaml.YAMLError as error:
            raise DgnError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
        if not isinstance(settings, dict):
            raise DgnError(f"{path} holds a {type(settings).__name__}: expected settings such as 'preset: draft'")
    return validated(model, {**settings, **given})
