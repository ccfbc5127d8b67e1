"""SQL queries of a run's rows, by DuckDB."""

from __future__ import annotations

import re
from collections.abc import Sequence

import pyarrow as pa

from dgn.errors import DgnError
from dgn.runs.alike import Alike, read_current
from dgn.runs.examples import Examples
from dgn.runs.index_parts import judged_dataset, unreadable
from dgn.runs.query import Rows

OF_A_FILE, TRACEBACK = "reading the stream registered as", " Detail: Python exception"  # in DuckDB's messages


def select(rows: Rows, sql: str) -> pa.Table:
    """The result of a SELECT from the table `rows` and, if there are any, `judged`, `examples` and `alike`.

    The query cannot reach this machine's files or network.

    Raises: DgnError for a query that DuckDB rejects; RunDamaged for a file of the run that it cannot read.
    """
    try:
        import duckdb
    except ImportError as error:
        raise DgnError("--sql needs DuckDB: pip install duckdb") from error
    with duckdb.connect(config={"enable_external_access": False}) as connection:
        try:
            connection.register("rows", rows.dataset())
            if "judged" in sql.lower() and rows.index and (judged := judged_dataset(rows.run, rows.index)):
                connection.register("judged", judged)
            if "examples" in sql.lower() and (examples := Examples.of(rows.run)).done():
                connection.register("examples", examples.lists())
            if re.search(r"\balike\b", sql.lower()) and read_current(rows.run):
                connection.register("alike", Alike.of(rows.run).table())
            statements = connection.extract_statements(sql)
            answer = connection.sql(statements[0]) if len(statements) == 1 else None
            if answer is None:
                raise DgnError(f"--sql: expected one SELECT, got {len(statements)} statements")
            table = answer.to_arrow_table()
        except duckdb.Error as error:
            raise _problem(" ".join(str(error).split())) from error
        except (pa.ArrowException, OSError, *rows.run.store.foreign) as error:
            raise unreadable(str(error)) from error
    check_unique(table.column_names, "--sql", "tell them apart with AS")
    return table


def _problem(text: str) -> DgnError:
    """DuckDB's complaint as an error of the query, or of the run."""
    if "name judged does not exist" in text.lower():
        text = "there are no judgements yet, and no table judged: dgn judge RUN --by NETWORK makes them"
    if "name examples does not exist" in text.lower():
        text = "this run has no examples yet, so no table of them: dgn examples RUN IMAGES finds them"
    if "name alike does not exist" in text.lower():
        text = "nobody has looked yet which pictures are alike, so there is no table alike: dgn alike RUN makes it"
    if "does not exist" in text and "Did you mean" in text:  # among DuckDB's own tables
        text = f"{text.partition('Did you mean')[0].strip()} The tables are rows, judged, examples and alike."
    return unreadable(text.partition(TRACEBACK)[0]) if OF_A_FILE in text else DgnError(f"--sql: {text}")


def check_unique(names: Sequence[str], option: str, advice: str) -> None:
    """Raises: DgnError for two columns of one name, which a row cannot hold."""
    if twice := [name for name in names if names.count(name) > 1]:
        raise DgnError(f"{option}: {len(twice)} columns are called '{twice[0]}': {advice}")
