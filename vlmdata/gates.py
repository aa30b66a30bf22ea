"""Gates: whether what a refresh brings is like what there is. Judged before shards are written."""

import tempfile
from pathlib import Path
from typing import Any

import duckdb

from vlmdata.catalog import parquet_sql
from vlmdata.dataset import Dataset
from vlmdata.download.forgotten import FORGOTTEN
from vlmdata.errors import DataError, InputError, RefusedError, first_line
from vlmdata.ingest import connect
from vlmdata.parts import Part
from vlmdata.recipe import Gates, nearest
from vlmdata.rules import quoted

_NUMBERS = ("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "UBIGINT", "FLOAT", "DOUBLE")


def check(dataset: Dataset, gates: Gates, new: tuple[Part, ...], parent: dict[str, Any]) -> None:
    """Hold the new parts of samples against the recipe's limits and the parent's samples.

    Raises RefusedError that names every gate that is shut, with what was found; InputError for a column that is not
    there or has no numbers; DataError for damaged parts. What is forgotten is left out.
    """
    if not (gates.kept_share or gates.error_share is not None or gates.score or gates.languages is not None):
        return
    with tempfile.TemporaryDirectory() as spill:
        connection = connect(Path(spill))
        if not dataset.local:
            connection.register_filesystem(dataset.fs)
        try:
            for name, paths in (
                ("fresh", [part.path for part in new]),
                ("earlier", [part["path"] for part in parent["samples"]]),
            ):
                # What is forgotten has no values, and is judged by nobody.
                connection.execute(
                    f"CREATE VIEW {name} AS SELECT * FROM {parquet_sql(dataset, paths)} "
                    f"WHERE reason IS DISTINCT FROM '{FORGOTTEN}'"
                )
            shut = _shut(connection, gates)
        except (duckdb.IOException, duckdb.InvalidInputException) as error:
            raise DataError(f"{dataset.url}: {first_line(error)}; `vlmdata verify` lists what is damaged") from error
        except duckdb.Error as error:
            raise InputError(f"gates: {first_line(error)}") from error
        finally:
            connection.close()
    if shut:
        raise RefusedError(
            f"{'; '.join(shut)}. Nothing is published, snapshot {parent['number']} stays in force; the new layer "
            "waits: `vlmdata refresh RECIPE --set gates.…` goes on with it, --discard drops it"
        )


def _shut(connection: duckdb.DuckDBPyConnection, gates: Gates) -> list[str]:
    pairs, kept, errors = connection.sql(
        "SELECT count(*), count(*) FILTER (kept), count(*) FILTER (reason LIKE 'download: %') FROM fresh"
    ).fetchall()[0]
    if pairs < gates.min_pairs:
        return []
    told = []
    if gates.kept_share:
        least, most = gates.kept_share
        if not least <= kept / pairs <= most:
            told.append(
                f"gates.kept_share: {kept:,} of {pairs:,} new pairs are kept ({kept / pairs:.3f}), "
                f"allowed are {least:g} to {most:g}"
            )
    if gates.error_share is not None and errors / pairs > gates.error_share:
        told.append(
            f"gates.error_share: the downloads of {errors:,} of {pairs:,} new pairs ended in an error "
            f"({errors / pairs:.3f}), allowed is {gates.error_share:g}"
        )
    for column, most in gates.score.items():
        _numeric(connection, column)
        moved = distance(connection, column)
        if moved is not None and moved > most:
            told.append(
                f"gates.score.{column}: its distribution has moved by {moved:.3f} (Kolmogorov-Smirnov), "
                f"allowed is {most:g}"
            )
    if gates.languages is not None:
        _there(connection, "languages", "lang")
        moved = variation(connection, "lang")
        if moved is not None and moved > gates.languages:
            told.append(
                f"gates.languages: the mix of languages has moved by {moved:.3f} (total variation), "
                f"allowed is {gates.languages:g}"
            )
    return told


def distance(connection: duckdb.DuckDBPyConnection, column: str) -> float | None:
    """The two-sample Kolmogorov-Smirnov statistic of a numeric column in `fresh` and `earlier`: the largest difference
    of their cumulative shares, 0 to 1. Nulls and NaN are left out; None where one side has no value."""
    value = f"{quoted(column)}::DOUBLE"
    found = connection.sql(
        f"""
        WITH every AS (
            SELECT {value} AS value, 1 AS new, 0 AS old FROM fresh UNION ALL SELECT {value}, 0, 1 FROM earlier
        ), counted AS (
            SELECT value, sum(new) AS new, sum(old) AS old FROM every
            WHERE value IS NOT NULL AND NOT isnan(value) GROUP BY value
        ), shares AS (
            SELECT sum(new) OVER (ORDER BY value) / nullif(sum(new) OVER (), 0) AS new,
                   sum(old) OVER (ORDER BY value) / nullif(sum(old) OVER (), 0) AS old
            FROM counted
        )
        SELECT max(abs(new - old)) FROM shares"""
    ).fetchall()[0][0]
    return None if found is None else float(found)


def variation(connection: duckdb.DuckDBPyConnection, column: str) -> float | None:
    """The total variation distance of a text column in `fresh` and `earlier`, 0 to 1; None where one has no value."""
    name = quoted(column)
    found = connection.sql(
        f"""
        WITH new AS (SELECT {name} AS value, count(*) / sum(count(*)) OVER () AS share FROM fresh
                     WHERE {name} IS NOT NULL GROUP BY 1),
             old AS (SELECT {name} AS value, count(*) / sum(count(*)) OVER () AS share FROM earlier
                     WHERE {name} IS NOT NULL GROUP BY 1)
        SELECT CASE WHEN EXISTS (FROM new) AND EXISTS (FROM old)
               THEN sum(abs(coalesce(new.share, 0) - coalesce(old.share, 0))) / 2 END
        FROM new FULL JOIN old USING (value)"""
    ).fetchall()[0][0]
    return None if found is None else float(found)


def _numeric(connection: duckdb.DuckDBPyConnection, column: str) -> None:
    kind = _there(connection, f"score.{column}", column)
    if kind not in _NUMBERS:
        raise InputError(f"gates.score: the column {column!r} holds {kind}, not numbers")


def _there(connection: duckdb.DuckDBPyConnection, gate: str, column: str) -> str:
    """The column's type. Raises InputError where there is none."""
    types = {name: kind for name, kind, *_ in connection.sql("DESCRIBE fresh").fetchall()}
    if column not in types:
        raise InputError(f"gates.{gate}: there is no column {column!r}{nearest(column, types)}; a signal must make it")
    return types[column]
