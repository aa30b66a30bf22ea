"""What decontamination found, side by side: the pair's image and the evaluation image that it is a copy of."""

from dataclasses import dataclass
from typing import Any

import duckdb

from vlmdata.dataset import Dataset
from vlmdata.report.sheets import Pair, cut, pair_of, read_faces, read_rows, tail, thumbnails

SHOWN = 24
_NAME = 60
_PICTURE = "data:image/webp;base64,"


@dataclass(frozen=True)
class Found:
    """One pair and its evaluation image. `ways`: (method, similarity) of every method that found it. Texts are cut, not
    escaped: the template does it. picture: a data: URL, or None where there is none to show."""

    pair: Pair
    evaluation: str
    picture: str | None
    ways: list[tuple[str, float]]


@dataclass(frozen=True)
class Contamination:
    """How many pairs stand in an evaluation set, of how many evaluation images, and the first of them."""

    pairs: int
    images: int
    shown: list[Found]


def contamination(
    dataset: Dataset, connection: duckdb.DuckDBPyConnection, manifest: dict[str, Any]
) -> Contamination | None:
    """The first SHOWN pairs in the order of uids; None where the recipe asks for no decontamination."""
    if "contamination" not in manifest["tables"]:
        return None
    ((pairs, images),) = connection.sql(
        "SELECT count(DISTINCT uid), count(DISTINCT evaluation) FROM contamination"
    ).fetchall()
    # of several methods that found other images the most similar's is shown
    found = connection.execute(
        f"""
        SELECT uid, first(evaluation ORDER BY similarity DESC, method), first(picture ORDER BY similarity DESC, method),
               list([method, similarity::VARCHAR] ORDER BY similarity DESC, method)
        FROM contamination GROUP BY uid ORDER BY uid LIMIT {SHOWN}"""
    ).fetchall()
    uids = [uid for uid, *_ in found]
    rows = read_rows(connection, uids, manifest["columns"], {})
    pictures = thumbnails(dataset, rows, read_faces(connection, uids, manifest))
    shown = [
        Found(
            pair_of(rows[uid], [], pictures.get(uid), None),
            tail(cut(evaluation, 1000), _NAME),
            picture if picture and picture.startswith(_PICTURE) else None,
            [(method, float(similarity)) for method, similarity in ways],
        )
        for uid, evaluation, picture, ways in found
    ]
    return Contamination(pairs, images, shown)
