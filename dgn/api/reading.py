"""Reading a run from Python: rows as Arrow, pandas or polars, pictures as PIL images."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dgn.api.pictures import Picture, Pictures, as_polars
from dgn.errors import DgnError
from dgn.runs.alike import SIMILARITY, Alike
from dgn.runs.conditions import Condition, condition, parse_condition
from dgn.runs.examples import Examples
from dgn.runs.query import Rows
from dgn.runs.run import Run
from dgn.runs.schema import QUERY_COLUMNS

if TYPE_CHECKING:
    import pandas
    import polars


def open_run(url: str | Path) -> OpenRun:
    """Opens a run of `dgn render` for reading, a folder or `s3://`, `gs://` or `az://bucket/prefix`. It may still be
    rendering.

    Raises: StoreError if the address holds no run.
    """
    return OpenRun(Run.at(str(url)))


class OpenRun:
    """A run to read. To see what was rendered after the first question, open it again.

    Conditions are written as in `dgn query --where`: `activation>=20`, `label~heron`, `status=ok`; one text or several,
    all of which must hold. Columns are described in the documentation of the schema.
    """

    def __init__(self, run: Run):
        self._run = run
        self._rows = Rows(run)

    @property
    def url(self) -> str:
        """The run's folder, or its address in a bucket."""
        return self._run.store.url

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that the run was started with."""
        return dict(self._rows.info.config)

    @property
    def layers(self) -> list[str]:
        """The layers that the run has pictures of, in order of depth."""
        return self._rows.layers()

    def __repr__(self) -> str:
        info = self._rows.info
        network, preset = info.fingerprint["discriminator"], info.config["preset"]
        return f"<run of {info.num_targets:,} pictures of {network}, preset {preset}: {self.url}>"

    def table(
        self,
        where: str | Sequence[str] = (),
        columns: str | Sequence[str] = QUERY_COLUMNS,
        by: str = "activation",
        top: int | None = None,
    ) -> pa.Table:
        """Rows as an Arrow table, best first; missing values come last.

        Args:
            where: conditions; all rows without any.
            columns: names of columns, in the table's order, or one name.
            by: activation, probability (highest first) or rank (lowest first).
            top: at most this many rows.

        Raises: DgnError for an unknown column, a condition that cannot be understood, or a `top` below 1.
        """
        names = [columns] if isinstance(columns, str) else columns
        return self._rows.select(_conditions(where), names, by, top)

    def to_pandas(
        self,
        where: str | Sequence[str] = (),
        columns: str | Sequence[str] = QUERY_COLUMNS,
        by: str = "activation",
        top: int | None = None,
    ) -> pandas.DataFrame:
        """`table` as a pandas DataFrame; needs pandas."""
        return self.table(where, columns, by, top).to_pandas()

    def to_polars(
        self,
        where: str | Sequence[str] = (),
        columns: str | Sequence[str] = QUERY_COLUMNS,
        by: str = "activation",
        top: int | None = None,
    ) -> polars.DataFrame:
        """`table` as a polars DataFrame; needs polars."""
        return as_polars(self.table(where, columns, by, top))

    def pictures(self, where: str | Sequence[str] = (), by: str = "activation", top: int | None = None) -> Pictures:
        """Pictures with their rows, best first; arguments as in `table`. Files are read when they are looked at."""
        return self._pictures(self.table(where, QUERY_COLUMNS, by, top))

    def best(self, layer: str, count: int = 10, mode: str | None = None, by: str = "activation") -> Pictures:
        """The best pictures of a layer, at most `count`.

        Raises: DgnError for a layer that the run has no pictures of, an unknown mode, or a `count` below 1.
        """
        asked = [condition("layer", "=", layer), *([condition("mode", "=", mode)] if mode else [])]
        rows = self._rows.select(asked, QUERY_COLUMNS, by, count)
        if not rows.num_rows and layer not in (layers := self.layers):
            raise DgnError(f"the run has no pictures of layer '{layer}': expected one of {', '.join(layers)}")
        return self._pictures(rows)

    def examples(self) -> pa.Table:
        """The photographs that excite each unit most, and those that it is surest of wrongly: a row for each.

        Columns are described in the documentation of the schema.

        Raises: DgnError before `dgn examples` has found them; RunDamaged.
        """
        return Examples.of(self._run).lists()

    def like(self, target_id: str, where: str | Sequence[str] = (), top: int = 20) -> Pictures:
        """The pictures that resemble a target's most, the most similar first, itself included; their rows have the
        column `similarity`, the cosine of the embeddings that `dgn alike` made.

        Args:
            where: conditions, as in `table`.

        Raises: DgnError before `dgn alike` has run, or for a target that it has not seen.
        """
        return self._pictures(self._rows.like(target_id, _conditions(where), (*QUERY_COLUMNS, SIMILARITY), top))

    def embeddings(self) -> tuple[list[str], NDArray[np.float16]]:
        """The target_ids of all pictures that `dgn alike` has compared, and their embeddings, (N, at most 256), of unit
        length.

        Raises: DgnError before `dgn alike` has run; RunDamaged.
        """
        alike = Alike.of(self._run)
        return alike.targets["target_id"].to_pylist(), alike.embeddings

    def picture(self, target_id: str) -> Picture:
        """One picture by its target, such as `fc8-00009-untrained-s0`. Raises: DgnError if there is none."""
        found = self._pictures(self._rows.select([condition("target_id", "=", target_id)], QUERY_COLUMNS))
        if not found:
            raise DgnError(
                f"the run has no picture '{target_id}' yet: expected a target_id such as LAYER-00009-untrained-s0"
            )
        return found[0]

    def _pictures(self, rows: pa.Table) -> Pictures:
        return Pictures(
            Picture(row, partial(self._run.picture, row["file_name"], row["sha256"]) if row["file_name"] else None)
            for row in rows.to_pylist()
        )


def _conditions(where: str | Sequence[str]) -> list[Condition]:
    texts = [where] if isinstance(where, str) else where
    if not isinstance(texts, Sequence) or not all(isinstance(text, str) for text in texts):
        raise DgnError(f"where: expected conditions such as 'activation>=20', got {where!r}")
    return [parse_condition(text) for text in texts]
