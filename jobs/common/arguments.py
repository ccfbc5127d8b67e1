"""Arguments that several commands share and no settings model defines. Imports little: a command starts at once."""

from __future__ import annotations

from typing import Annotated

import typer

from dgn.text import A_BUCKET

RunArgument = Annotated[str, typer.Argument(metavar="RUN", help=f"A folder, or {A_BUCKET}.")]

# Where what made RUN's pictures is now, for commands whose other flags describe another network, or none.
OwnNetwork = Annotated[
    str | None, typer.Option(metavar="FUNCTION", help="RUN's own network again, if it is code: this runs it.")
]
OwnWeights = Annotated[
    str | None, typer.Option(metavar="FILE", help="File of the weights that RUN was made with, if it moved.")
]
OwnLabels = Annotated[
    str | None, typer.Option(metavar="FILE", help="File of the labels that RUN was made with, if it moved.")
]
