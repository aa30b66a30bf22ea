"""Contact sheets: a seeded choice of kept pairs, of rejected pairs by reason, and of duplicate groups by method.

The choice is made by SQL over uids; then only the chosen pairs' rows and images are read.
"""

import base64
import io
import itertools
import logging
import unicodedata
from dataclasses import dataclass, field
from typing import Any

import duckdb
from PIL import Image

from vlmdata.blur import blur_faces
from vlmdata.dataset import Dataset
from vlmdata.errors import DataError
from vlmdata.report.facts import funnel
from vlmdata.report.thresholds import columns_read

log = logging.getLogger(__name__)

KEPT, REJECTED, GROUPS, MEMBERS = 24, 8, 5, 7
# Of a thumbnail, in pixels: about twice as many as the page shows it with, for sharp screens.
WIDTH, HEIGHT, QUALITY = 216, 168, 62
_CAPTION, _URL, _NAME = 280, 60, 34


@dataclass(frozen=True)
class Pair:
    """One pair on a sheet. Texts are cut, and hold no control characters; they are not escaped: the template does it.

    thumbnail: a data: URL, or None where there is no image to show. link: an http(s) URL, or None. file: the end of the
    URL. values: what the rule that rejected the pair has read, as (column, value).
    """

    uid: str
    caption: str
    url: str
    file: str
    link: str | None
    source: str
    kept: bool
    reason: str | None
    split: str | None
    status: str
    score: float | None
    values: list[tuple[str, Any]]
    thumbnail: str | None = None
    similarity: float | None = None


@dataclass(frozen=True)
class Group:
    """Some members of a duplicate group, those that are kept first; `size` counts all."""

    name: str
    size: int
    members: list[Pair]


@dataclass(frozen=True)
class Method:
    """A dedup method: how many groups and members it found, how many pairs it rejected, and some of its groups."""

    name: str
    groups: int
    members: int
    rejected: int
    shown: list[Group]


@dataclass(frozen=True)
class Sheets:
    """Everything that the report shows pictures of."""

    kept: list[Pair]
    rejected: dict[str, list[Pair]]
    methods: list[Method]


@dataclass
class _Choice:
    kept: list[str]
    rejected: dict[str, list[str]]
    methods: list[dict[str, Any]]
    groups: dict[tuple[str, str], list[tuple[str, float]]] = field(default_factory=dict)

    @property
    def uids(self) -> list[str]:
        members = [uid for group in self.groups.values() for uid, _ in group]
        return sorted({*self.kept, *members, *(uid for uids in self.rejected.values() for uid in uids)})


def contact_sheets(dataset: Dataset, connection: duckdb.DuckDBPyConnection, manifest: dict[str, Any]) -> Sheets:
    """Choose, read and shrink. The choice depends on the recipe's `shards.seed` and on uids alone.

    connection: as `catalog.connect` gives it. Raises DataError where a tar that the tables name is not there.
    """
    seed = str(manifest["recipe"]["shards"]["seed"])
    choice = _choose(connection, seed, "duplicates" in manifest["tables"])
    columns = {name.lower(): name for name in manifest["columns"]}
    reads = {
        step.reason: [columns[name.lower()] for name in columns_read(step.rule) if name.lower() in columns]
        for step in funnel(manifest)
        if step.is_rule
    }
    rows = read_rows(connection, choice.uids, manifest["columns"], reads)
    pictures = thumbnails(dataset, rows, read_faces(connection, choice.uids, manifest))

    def pair(uid: str, similarity: float | None = None) -> Pair:
        return pair_of(rows[uid], reads.get(rows[uid]["reason"], []), pictures.get(uid), similarity)

    methods = []
    for facts in choice.methods:
        shown = [
            Group(
                name, facts["sizes"][name], [pair(uid, similarity) for uid, similarity in choice.groups[method, name]]
            )
            for method, name in choice.groups
            if method == facts["method"]
        ]
        shown.sort(key=lambda group: (group.size, group.name))
        methods.append(Method(facts["method"], facts["groups"], facts["members"], facts["rejected"], shown))
    order = [entry["kind"] for entry in manifest["recipe"]["dedup"]]
    methods.sort(key=lambda method: (order.index(method.name) if method.name in order else len(order), method.name))
    rejected = {reason: [pair(uid) for uid in uids] for reason, uids in choice.rejected.items()}
    return Sheets([pair(uid) for uid in choice.kept], rejected, methods)


def _choose(connection: duckdb.DuckDBPyConnection, seed: str, duplicates: bool) -> _Choice:
    """min_by keeps a few rows for each group, so that the choice needs no memory for the rest."""
    parameters: dict[str, Any] = {"seed": f"{seed} report "}
    kept = connection.execute(
        f"SELECT min_by(uid, md5($seed || uid), {KEPT}) FROM samples WHERE kept", parameters
    ).fetchall()
    rejected = connection.execute(
        f"SELECT reason, min_by(uid, md5($seed || uid), {REJECTED}) FROM samples WHERE NOT kept "
        "AND reason <> 'forgotten' GROUP BY reason",
        parameters,
    ).fetchall()
    choice = _Choice(kept[0][0] or [], dict(rejected), [])
    if not duplicates:
        return choice
    # Groups in which the method rejected something say most; then by lot.
    groups = connection.execute(
        f"""
        WITH sized AS (
            SELECT dup_method, dup_group, count(*) AS size,
                   count(*) FILTER (reason = 'duplicate: ' || dup_method) AS rejected
            FROM duplicates JOIN samples USING (uid) WHERE dup_method <> 'decontaminate' GROUP BY ALL)
        SELECT dup_method, count(*), sum(size)::BIGINT, sum(rejected)::BIGINT,
               min_by({{'name': dup_group, 'size': size}},
                      {{'a': rejected = 0, 'b': md5($seed || dup_group)}}, {GROUPS})
        FROM sized GROUP BY dup_method""",
        parameters,
    ).fetchall()
    for method, count, members, lost, chosen in groups:
        sizes = {group["name"]: group["size"] for group in chosen}
        choice.methods.append({"method": method, "groups": count, "members": members, "rejected": lost, "sizes": sizes})
        found = connection.execute(
            f"""
            SELECT dup_group, min_by({{'uid': uid, 'similarity': similarity}},
                                     {{'a': NOT kept, 'b': -similarity, 'c': uid}}, {MEMBERS})
            FROM duplicates JOIN samples USING (uid)
            WHERE dup_method = $method AND dup_group IN (SELECT unnest($groups)) GROUP BY dup_group""",
            {"method": method, "groups": list(sizes)},
        ).fetchall()
        members_of = dict(found)
        for name in sizes:
            choice.groups[method, name] = [(entry["uid"], entry["similarity"]) for entry in members_of[name]]
    return choice


def read_rows(
    connection: duckdb.DuckDBPyConnection, uids: list[str], columns: dict[str, str], reads: dict[str, list[str]]
) -> dict[str, dict[str, Any]]:
    """uid -> the columns that a sheet shows; those that rules read are under `_<name>`."""
    score = next((f'"{name}"' for name in columns if name.startswith("clip_score")), "NULL::FLOAT")
    read = sorted({name for names in reads.values() for name in names} - {"caption", "url"})
    values = "".join(f', "{name}" AS "_{name}"' for name in read)
    table = connection.sql(
        f"""
        SELECT uid, left(caption, {_CAPTION + 1}) AS caption, left(url, 2000) AS url, source, kept, reason, split,
               download_status, {score} AS score, stored_tar, "offset", length{values}
        FROM samples WHERE uid IN (SELECT unnest($uids))""",
        params={"uids": uids},
    ).to_arrow_table()
    return {row["uid"]: row for row in table.to_pylist()}


def read_faces(
    connection: duckdb.DuckDBPyConnection, uids: list[str], manifest: dict[str, Any]
) -> dict[str, Any] | None:
    """uid -> the faces' boxes, of the pairs whose image was searched for faces; None where faces stay as they are."""
    if not manifest["recipe"]["shards"].get("blur_faces"):
        return None
    sql = "SELECT uid, face_boxes FROM boxes_faces WHERE uid IN (SELECT unnest($uids)) AND face_boxes IS NOT NULL"
    return dict(connection.execute(sql, {"uids": uids}).fetchall())


def thumbnails(
    dataset: Dataset, rows: dict[str, dict[str, Any]], faces: dict[str, Any] | None = None
) -> dict[str, str]:
    """uid -> data: URL; each tar is opened once and read from front to back, at the chosen images' places only.

    faces: what is blurred; an image that was not searched for faces is then not shown.
    """
    # Whoever said no, perhaps after it was stored, and what is known to be illegal, is not shown either.
    stored = [row for row in rows.values() if row["length"] and not (row["reason"] or "").startswith("consent: ")]
    stored = [row for row in stored if faces is None or row["uid"] in faces]
    stored.sort(key=lambda row: (row["stored_tar"], row["offset"]))
    pictures: dict[str, str] = {}
    for path, inside in itertools.groupby(stored, key=lambda row: row["stored_tar"]):
        try:
            handle = dataset.open(path)
        except FileNotFoundError as error:
            raise DataError(
                f"{path}: is not there, but stored images lie in it; `vlmdata verify` lists what is damaged"
            ) from error
        with handle as tar:
            for row in inside:
                tar.seek(row["offset"])
                try:
                    content = tar.read(row["length"])
                    if faces:
                        content = blur_faces(content, faces[row["uid"]], 95)  # what is blurred loses nothing more here
                    pictures[row["uid"]] = thumbnail(content)
                except (OSError, ValueError) as error:
                    log.warning("the stored image of %s cannot be shown: %s", row["uid"], error)
    return pictures


def thumbnail(content: bytes) -> str:
    """A stored image (any format that Pillow reads) as a small WebP image in a data: URL, never enlarged.

    Raises OSError or ValueError for bytes that are no image.
    """
    with Image.open(io.BytesIO(content)) as image:
        image.draft("RGB", (WIDTH, HEIGHT))  # a JPEG is decoded at a fraction of its size
        picture = image.convert("RGB")
    picture.thumbnail((WIDTH, HEIGHT), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    picture.save(out, "WEBP", quality=QUALITY, method=4)
    return "data:image/webp;base64," + base64.b64encode(out.getvalue()).decode()


def pair_of(row: dict[str, Any], read: list[str], picture: str | None, similarity: float | None) -> Pair:
    url = row["url"] or ""
    values = [(name, row[f"_{name}"]) for name in read if f"_{name}" in row]
    return Pair(
        row["uid"],
        cut(row["caption"] or "", _CAPTION),
        tail(url, _URL),
        tail(url, _NAME),
        url if url.startswith(("http://", "https://")) and clean(url) == url else None,
        cut(row["source"] or "", _URL),
        row["kept"],
        row["reason"],
        row["split"],
        row["download_status"] or "not fetched",
        row["score"],
        [(name, cut(value, _NAME) if isinstance(value, str) else value) for name, value in values],
        picture,
        similarity,
    )


def cut(text: str, most: int) -> str:
    """At most `most` characters of a text of others, in one line and without control characters."""
    text = " ".join(clean(text).split())
    return text if len(text) <= most else text[: most - 1].rstrip() + "…"


def tail(url: str, most: int) -> str:
    """At most `most` characters: the end of a URL, which tells one image from the next."""
    url = clean(url)
    return url if len(url) <= most else "…" + url[1 - most :]


def clean(text: str) -> str:
    """A text of others with its control characters replaced: NUL is not allowed in HTML, and overrides of the
    direction of writing could make a text read as another."""
    return "".join("\N{REPLACEMENT CHARACTER}" if c in _OVERRIDES or _is_control(c) else c for c in text)


def _is_control(character: str) -> bool:
    return unicodedata.category(character) == "Cc" and character not in "\t\n\r"


_OVERRIDES = frozenset("\u202a\u202b\u202d\u202e\u2066\u2067\u2068\u202c\u2069")
