"""Pydantic's validation, with its errors as one line for people."""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from dgn.errors import DgnError

Settings = TypeVar("Settings", bound=BaseModel)


def validated(model: type[Settings], settings: dict[str, Any]) -> Settings:
    """A model's settings, checked. Raises: DgnError, naming the first setting that is wrong."""
    try:
        return model.model_validate(settings)
    except ValidationError as error:
        problems = error.errors()
        name, given = problems[0]["loc"][0], problems[0]["input"]
        if problems[0]["type"] == "extra_forbidden":
            known = ", ".join(model.model_fields)
            raise DgnError(f"unknown setting '{name}': expected one of {known}") from error
        # A setting that may be of several types has a problem for each of them.
        expected = dict.fromkeys(_expected(problem) for problem in problems if problem["loc"][0] == name)
        raise DgnError(f"setting {name}: expected {' or '.join(expected)}, got {given!r}") from error


def _expected(problem: ErrorDetails) -> str:
    """What one of a validation's errors asks for. The words are pydantic's where it has good ones."""
    bounds = problem.get("ctx", {})
    match problem["type"].split("_"):
        case ["int", *_]:
            return "an integer"
        case ["float", *_]:
            return "a number"
        case ["string", *_]:
            return "text"
        case ["tuple", *_]:
            return "a text or a list of texts"
        case ["literal", *_]:
            return str(bounds["expected"])
        case ["greater", "than", "equal"]:
            return f"at least {bounds['ge']:g}"
        case ["greater", "than"]:
            return f"more than {bounds['gt']:g}"
        case ["less", "than", "equal"]:
            return f"at most {bounds['le']:g}"
        case ["less", "than"]:
            return f"less than {bounds['lt']:g}"
    return problem["msg"].removeprefix("Value error, ").removeprefix("expected ")


def first_problem(error: ValidationError) -> str:
    """`field: what is wrong with it`, the first of a validation's errors."""
    first = error.errors()[0]
    return f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"
