"""What an audit compared and what it could not, in sentences: for the page and for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dgn.runs.audit import Audit
from dgn.runs.examples import Examples
from dgn.runs.labelled import LEAST_OF_CLASS, LabelledPhotographs
from dgn.text import plural, some


def remarks_on(audit: Audit, pictures: Sequence[dict[str, Any]]) -> list[str]:
    """Nothing that was left out is missing here."""
    return [*_on_photographs(audit, pictures), _on_examples(audit)]


def _on_photographs(audit: Audit, pictures: Sequence[dict[str, Any]]) -> list[str]:
    photographs = audit.photographs
    if photographs is None:
        return ["Not compared with photographs: give them with --images, in folders named as the classes."]
    counts = {one["unit"]: one["num_photographs"] for one in pictures}
    lacking = [audit.own.layers.class_name(class_) for class_, count in counts.items() if not count]
    num_of_all = len(audit.every.names) if audit.every else 0
    remarks = [
        f"{len(counts) - len(lacking):,} of {len(counts):,} classes compared with {sum(counts.values()):,} photographs "
        f"of them in {photographs.store.url}, and with {num_of_all:,} of all classes there."
    ]
    if lacking:
        remarks.append(f"Not compared, for want of {LEAST_OF_CLASS} readable photographs: {some(lacking)}.")
    return [*remarks, *_left_out(photographs)]


def _left_out(photographs: LabelledPhotographs) -> list[str]:
    parts = []
    if photographs.num_without_class:
        parts.append(f"{plural(photographs.num_without_class, 'photograph')} in folders not named as classes")
    if photographs.left_out:
        parts.append(photographs.left_out)
    if photographs.unreadable:
        name, why = min(photographs.unreadable.items())
        parts.append(f"{len(photographs.unreadable):,} unreadable, such as {name}: {why}")
    return [f"Left out: {'; '.join(parts)}."] if parts else []


def _on_examples(audit: Audit) -> str:
    done = Examples.of(audit.run).done()
    if done is None:
        return f"No examples yet: dgn examples {audit.run.store.url} IMAGES finds them."
    if not done.num_with_class:
        return f"No examples that are surest and wrong: no folder in {done.images} was named as a class."
    return f"Examples: of {plural(done.num_photographs, 'photograph')} in {done.images}."
