"""Which pairs are kept, and why the others are not: rules, then the survivor of each duplicate group, then shards.

Every pair ends with one verdict. The order of reasons: consent, download, rules in order, duplicates by method.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vlmdata.recipe import Shards
from vlmdata.rules import Expression, Order, evaluate
from vlmdata.schemas import table_schema

if TYPE_CHECKING:
    import pyarrow.dataset as pads

VERSION = 1
CONSENT_STATUSES = ("robots", "noai", "tdm", "noml", "optout")
ERROR_CLASSES = (
    "timeout", "dns", "connect", "tls", "4xx", "5xx", "too_large", "type", "decode", "pixels",
    "hash_mismatch", "blocked",
)  # fmt: skip
FAILURES = (*ERROR_CLASSES, *CONSENT_STATUSES)  # every download_status but success
VERDICT = table_schema("verdict")


@dataclass(frozen=True)
class Choice:
    """A selection: the rules in order, the signals' columns that an `after` may leave unmeasured, and the survivor."""

    rules: dict[str, Expression]
    unmeasured: frozenset[str]
    methods: tuple[str, ...]
    survivor: tuple[Order, ...]


def denials(page: pa.ChunkedArray, host: pa.ChunkedArray, respect: Iterable[str]) -> pa.ChunkedArray:
    """string [n]: the first word by which the page says no to each row's use, else the host, of the words in `respect`;
    null where neither does. page, host: the columns `page_consent` and `consent`, as what was said was stored."""
    words = [word for word in CONSENT_STATUSES if word in respect]
    first = pa.chunked_array([pa.nulls(len(page), pa.string())])
    for said in (host, page):
        for word in reversed(words):
            first = pc.if_else(pc.fill_null(pc.equal(pc.struct_field(said, word), "deny"), False), word, first)
    return first


def judge_part(
    rows: pa.Table, choice: Choice, listed: np.ndarray | None = None, denied: pa.ChunkedArray | None = None
) -> pa.Table:
    """The verdict on each row of a part as far as the row alone decides it.

    rows: all scalar columns of the part. What the download refused stays refused; what it did not is judged as consent
    is today. denied: string [n], see `denials`. listed: bool [n], which rows an opt-out list names; the column `known`,
    where it is there, says the same of lists of known images.
    Returns uid, reason (string, null where nothing rejects the row), sha256, and the values of the survivor's terms
    (term_0, …).
    """
    status = rows["download_status"]
    consent = pc.is_in(status, pa.array(CONSENT_STATUSES))
    reason = pc.case_when(
        pc.make_struct(consent, pc.not_equal(status, "success")),
        pc.binary_join_element_wise("consent", status, ": "),
        pc.binary_join_element_wise("download", status, ": "),
    )
    no = [] if denied is None else [(denied.is_valid(), pc.binary_join_element_wise("consent", denied, ": "))]
    no += [] if listed is None else [(pa.array(listed), "consent: optout")]
    no += [(pc.fill_null(rows["known"], False), "consent: optout")] if "known" in rows.column_names else []
    for said, words in no:
        reason = pc.if_else(pc.and_(said, pc.invert(consent)), words, reason)
        consent = pc.or_(consent, said)
    values = evaluate(rows, choice.rules)
    for name, expression in choice.rules.items():
        value = values[name]
        gaps = [rows[column].is_null() for column in expression.columns if column in choice.unmeasured]
        gap = np.logical_or.reduce([g.to_numpy() for g in gaps]) if gaps else np.zeros(rows.num_rows, bool)
        unmeasured = pc.and_(value.is_null(), pa.array(gap))
        failed = pc.invert(pc.fill_null(value, False))
        verdict = pc.case_when(pc.make_struct(unmeasured, failed), f"{name}: not measured", name)
        reason = pc.coalesce(reason, verdict)
    terms = evaluate(rows, {f"term_{place}": order.expression for place, order in enumerate(choice.survivor)})
    judged = pa.table({"uid": rows["uid"], "reason": pc.cast(reason, pa.string()), "sha256": rows["sha256"]})
    for name in terms.column_names:
        judged = judged.append_column(name, terms[name])
    return judged


def settle(
    judged: "pads.Dataset",
    duplicates: "pads.Dataset | None",
    sizes: list[int],
    choice: Choice,
    shards: Shards,
    spill: Path,
) -> tuple[Iterator[pa.Table], list[dict[str, Any]], dict[str, int]]:
    """What only a look at all pairs decides: survivors of duplicate groups, and the place of each kept pair.

    judged: the parts of `judge_part`, in order, of `sizes` rows. spill: a folder that DuckDB may write to.
    Of a group's members that pass so far, the first by the survivor's order stays, ties by uid. Kept pairs go to the
    splits by a seeded hash of the image's sha256 (so that one image is never in two), and to shards by one of the uid.
    Returns the verdicts, part by part in the order of the rows; the funnel; and how many samples each split has.
    """
    connection = duckdb.connect(":memory:", config={"temp_directory": str(spill / "spill"), "memory_limit": "2GB"})
    connection.register("judged", judged)
    terms = [f"term_{place}" for place in range(len(choice.survivor))]
    connection.execute(
        "CREATE TABLE verdict AS SELECT row_number() OVER () AS place, uid, reason, sha256"
        + "".join(f", {term}" for term in terms)
        + " FROM judged"
    )
    if duplicates is not None:
        connection.register("duplicates", duplicates)
        order = "".join(f"{term} {by.direction} NULLS LAST, " for term, by in zip(terms, choice.survivor, strict=True))
        for method in choice.methods:
            connection.execute(
                f"""
                UPDATE verdict SET reason = 'duplicate: ' || $method WHERE uid IN (
                    SELECT uid FROM (
                        SELECT v.uid, row_number() OVER (PARTITION BY d.dup_group ORDER BY {order} v.uid) AS rank
                        FROM verdict v JOIN duplicates d ON d.uid = v.uid
                        WHERE d.dup_method = $method AND v.reason IS NULL
                    ) WHERE rank > 1
                )""",
                {"method": method},
            )
    connection.execute(
        f"""
        CREATE TABLE placed AS
        SELECT place, split, rank // $samples AS shard, rank % $samples AS index FROM (
            SELECT place, split, row_number() OVER (PARTITION BY split ORDER BY md5($seed || uid), uid) - 1 AS rank
            FROM (SELECT place, uid, {_split(shards)} AS split FROM verdict WHERE reason IS NULL)
        )""",
        {"seed": f"{shards.seed}\0", "samples": shards.samples},
    )
    counts = dict(connection.sql("SELECT reason, count(*) FROM verdict GROUP BY reason").fetchall())
    splits = dict(connection.sql("SELECT split, count(*) FROM placed GROUP BY split").fetchall())
    rows = connection.sql(
        """
        SELECT uid, reason IS NULL AS kept, reason,
               split || '-' || lpad(shard::VARCHAR, 7, '0') AS shard, index::INTEGER AS index, split,
               (reason IS NULL)::INTEGER AS copies
        FROM verdict LEFT JOIN placed USING (place) ORDER BY place"""
    )
    return _cut(connection, rows, sizes), funnel(counts, choice), {name: splits.get(name, 0) for name in shards.splits}


def funnel(counts: dict[str | None, int], choice: Choice) -> list[dict[str, Any]]:
    """The steps in the order of verdicts: `{"reason", "rejected", "left"}`, the first with reason null: all pairs.

    Rules and methods that rejected nothing stand in it too; other reasons only where they rejected something.
    """
    left = sum(counts.values())
    steps: list[dict[str, Any]] = [{"reason": None, "rejected": 0, "left": left}]
    order = [f"consent: {word}" for word in CONSENT_STATUSES] + [f"download: {word}" for word in ERROR_CLASSES]
    for name in choice.rules:
        order += [f"{name}: not measured", name]
    order += [f"duplicate: {method}" for method in choice.methods]
    always = {*choice.rules, *(f"duplicate: {method}" for method in choice.methods)}
    unknown = set(counts) - set(order) - {None}
    assert not unknown, f"reasons without a place in the funnel: {sorted(map(str, unknown))}"
    for reason in order:
        rejected = counts.get(reason, 0)
        if rejected or reason in always:
            left -= rejected
            steps.append({"reason": reason, "rejected": rejected, "left": left})
    return steps


def _split(shards: Shards) -> str:
    """SQL that gives a kept pair's split: a seeded hash of the image's sha256 against the splits' shares."""
    share = f"(('0x' || left(md5('{shards.seed} split ' || sha256), 8))::UBIGINT / 4294967296.0)"
    names = list(shards.splits)
    cases, up_to = "", 0.0
    for name in names[:-1]:
        up_to += shards.splits[name]
        cases += f"WHEN {share} < {up_to!r} THEN '{name}' "
    return f"CASE {cases}ELSE '{names[-1]}' END" if cases else f"'{names[0]}'"


def _cut(connection: duckdb.DuckDBPyConnection, rows: duckdb.DuckDBPyRelation, sizes: list[int]) -> Iterator[pa.Table]:
    """The rows in tables of `sizes` rows."""
    reader = rows.to_arrow_reader(65_536)
    held = reader.schema.empty_table()
    for size in sizes:
        while held.num_rows < size:
            held = pa.concat_tables([held, pa.Table.from_batches([reader.read_next_batch()])])
        yield held.slice(0, size).select(VERDICT.names).cast(VERDICT)
        held = held.slice(size)
    connection.close()
