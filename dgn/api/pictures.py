"""Pictures as Python objects: what a notebook shows, and what `dgn.render` and `dgn.open_run` return."""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import pyarrow as pa
from PIL import Image

from dgn.errors import DgnError, RunDamaged
from dgn.runs.schema import QUERY_COLUMNS, SCHEMA
from dgn.statuses import Status
from dgn.text import plural

if TYPE_CHECKING:
    import pandas
    import polars

SHOWN_AT_MOST = 60  # pictures in a notebook's cell
CELL_PX = 160


class Picture:
    """One picture with everything that is known about it.

    Args:
        row: its values by the columns of a run's rows, see the documentation of the schema.
        read: gives the bytes of its PNG file; called once, when the picture is first looked at. None if there is no
            picture, see `status` and `reason`.
    """

    def __init__(self, row: Mapping[str, Any], read: Callable[[], bytes] | None):
        self.row, self._read = dict(row), read

    @property
    def target_id(self) -> str:
        """The target's name, unique in a run: `fc8-00009-untrained-s0`."""
        return self.row["target_id"]

    @property
    def layer(self) -> str:
        """The layer of the target's first unit."""
        return self.row["layer"]

    @property
    def unit(self) -> int | None:
        """The unit, 0-based in its layer; None for a weighted group."""
        return self.row["unit"]

    @property
    def label(self) -> str | None:
        """The label of a class, or of the classes of a mix; None for other layers."""
        return self.row["label"]

    @property
    def mode(self) -> str:
        """`untrained` or `pretrained`: the generator's."""
        return self.row["mode"]

    @property
    def status(self) -> Status:
        """How the target ended."""
        return Status(self.row["status"])

    @property
    def reason(self) -> str | None:
        """Why the status is not `ok`; None if it is."""
        return self.row["reason"]

    @property
    def activation(self) -> float | None:
        """The target's activation on the saved 8-bit picture, after the ReLU, averaged over space."""
        return self.row.get("activation")

    @property
    def rank(self) -> int | None:
        """The target's rank in its layer, on the saved picture; 1 is first."""
        return self.row.get("rank")

    @property
    def probability(self) -> float | None:
        """Softmax of the target's class; None for other layers."""
        return self.row.get("probability")

    @cached_property
    def png(self) -> bytes:
        """The bytes of the PNG file.

        Raises: DgnError for a target without a picture, RunDamaged if the file is missing.
        """
        if self._read is None:
            raise DgnError(f"{self.target_id} has no picture: {self.reason}")
        return self._read()

    @cached_property
    def image(self) -> Image.Image:
        """The picture, 8-bit RGB, 224 x 224 px. Raises: as `png`."""
        return Image.open(io.BytesIO(self.png)).convert("RGB")

    def save(self, path: str | Path) -> None:
        """Writes the PNG file. Raises: as `png`; DgnError for a name that does not end in `.png`; OSError."""
        if Path(path).suffix.lower() != ".png":
            raise DgnError(f"cannot save to {path}: pictures are PNG files, expected a name that ends in .png")
        Path(path).write_bytes(self.png)

    @property
    def caption(self) -> str:
        """Name, mode and scores, in one line."""
        name = self.label or (self.target_id.rsplit("-", 2)[0] if self.unit is None else f"{self.layer} {self.unit}")
        if self.activation is None:
            return f"{name}, {self.mode}: {self.status}"
        ending = "" if self.status is Status.OK else f", {self.status}"
        return f"{name}, {self.mode}: activation {self.activation:.3g}, rank {self.rank}{ending}"

    def __repr__(self) -> str:
        return f"<{self.caption}>"

    def _repr_png_(self) -> bytes | None:
        return self.png if self._read else None


class Pictures(Sequence[Picture]):
    """Several pictures: a sequence that a notebook shows as a grid."""

    def __init__(self, pictures: Iterable[Picture]):
        self._pictures = tuple(pictures)

    def __len__(self) -> int:
        return len(self._pictures)

    @overload
    def __getitem__(self, index: int) -> Picture: ...

    @overload
    def __getitem__(self, index: slice) -> Pictures: ...

    def __getitem__(self, index: int | slice) -> Picture | Pictures:
        found = self._pictures[index]
        return found if isinstance(found, Picture) else Pictures(found)

    def __iter__(self) -> Iterator[Picture]:
        return iter(self._pictures)

    def __repr__(self) -> str:
        return plural(len(self), "picture") + "".join(
            f"\n  {picture.caption}" for picture in self._pictures[:SHOWN_AT_MOST]
        )

    def table(self) -> pa.Table:
        """The pictures' rows as an Arrow table, with the columns of a run's rows except the thumbnail."""
        schema = pa.schema([SCHEMA.field(name) for name in QUERY_COLUMNS])
        return pa.Table.from_pylist([picture.row for picture in self], schema=schema)

    def to_pandas(self) -> pandas.DataFrame:
        """The pictures' rows as a pandas DataFrame; needs pandas."""
        return self.table().to_pandas()

    def to_polars(self) -> polars.DataFrame:
        """The pictures' rows as a polars DataFrame; needs polars."""
        return as_polars(self.table())

    def grid(self, columns: int | None = None) -> Image.Image:
        """All pictures side by side, without captions; white for targets without one. Raises: as `Picture.png`."""
        num_columns = columns or math.ceil(math.sqrt(max(len(self), 1)))
        images = [picture.image if picture._read else None for picture in self]
        side = max((image.width for image in images if image), default=1)
        page = Image.new("RGB", (num_columns * side, max(1, math.ceil(len(self) / num_columns)) * side), "white")
        for n, image in enumerate(images):
            if image:
                page.paste(image, (n % num_columns * side, n // num_columns * side))
        return page

    def _repr_html_(self) -> str:
        cells = "".join(_cell(picture) for picture in self._pictures[:SHOWN_AT_MOST])
        more = len(self) - SHOWN_AT_MOST
        rest = f"<p>and {more:,} more</p>" if more > 0 else ""
        return f'<div style="display:flex;flex-wrap:wrap;gap:8px">{cells}</div>{rest}'


def _cell(picture: Picture) -> str:
    caption = html.escape(picture.caption)
    try:
        # WebP keeps a notebook's file a tenth of the size; `Picture.png` is exact.
        buffer = io.BytesIO()
        picture.image.save(buffer, "WEBP", quality=90)
        data = base64.b64encode(buffer.getvalue()).decode()
        shown = f'<img width="{CELL_PX}" alt="{caption}" src="data:image/webp;base64,{data}">'
    except DgnError as error:
        problem = error.problem if isinstance(error, RunDamaged) else picture.reason or "no picture"
        shown = f'<div style="height:{CELL_PX}px">{html.escape(problem)}</div>'
    below = f"<figcaption><small>{caption}</small></figcaption>"
    return f'<figure style="margin:0;width:{CELL_PX}px">{shown}{below}</figure>'


def as_polars(table: pa.Table) -> polars.DataFrame:
    """An Arrow table as a polars DataFrame. Raises: DgnError if polars is not installed."""
    try:
        import polars
    except ImportError as error:
        raise DgnError("polars is not installed: pip install polars") from error
    frame = polars.from_arrow(table)
    assert isinstance(frame, polars.DataFrame)
    return frame
