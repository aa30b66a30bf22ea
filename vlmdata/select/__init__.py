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

VERSION = 2
MERGED = 16  # captions that a survivor gets from others of its groups, at most
CONSENT_STATUSES = ("robots", "noai", "tdm", "noml", "optout")
ERROR_CLASSES = (
    "timeout", "dns", "connect", "tls", "4xx", "5xx", "too_large", "type", "decode", "pixels",
    "hash_mismatch", "blocked",
)  # fmt: skip
FAILURES = (*ERROR_CLASSES, *CONSENT_STATUSES)  # every download_status but success
VERDICT = table_schema("verdict").remove(table_schema("verdict").get_field_index("captions"))
# What `settle` gives: merged are the captions that a survivor gets from others, null for most.
SETTLED = VERDICT.append(pa.field("merged", pa.list_(pa.string())))


@dataclass(frozen=True)
class Choice:
    """A selection: the rules in order, the signals' columns that an `after` may leave unmeasured, the methods of
    deduplication (of which `merging` give their captions to the survivor), and the survivor."""

    rules: dict[str, Expression]
    unmeasured: frozenset[str]
    methods: tuple[str, ...]
    survivor: tuple[Order, ...]
    merging: frozenset[str] = frozenset()


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
    (term_0, …); and captions where a method merges them.
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
    Of a group's members that pass so far, the first by the survivor's order stays, ties by uid; of a group found by
    decontamination none. Where the method merges, the column `captions` of judged is read, and the survivor gets those
    of the others, and what these got from groups of earlier methods: MERGED at most that are not its own, in the order
    of the methods, then of the survivor's order. Kept pairs go to the
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
    connection.execute("CREATE TABLE replaced (uid VARCHAR, survivor VARCHAR, method INTEGER, rank BIGINT)")
    if duplicates is not None:
        connection.register("duplicates", duplicates)
        order = "".join(f"{term} {by.direction} NULLS LAST, " for term, by in zip(terms, choice.survivor, strict=True))
        for place, method in enumerate(choice.methods):
            survivors = 0 if method == "decontaminate" else 1
            connection.execute(
                f"""
                CREATE OR REPLACE TEMP TABLE lost AS SELECT * FROM (
                    SELECT v.uid, row_number() OVER in_group AS rank, first(v.uid) OVER in_group AS survivor
                    FROM verdict v JOIN duplicates d ON d.uid = v.uid
                    WHERE d.dup_method = $method AND v.reason IS NULL
                    WINDOW in_group AS (PARTITION BY d.dup_group ORDER BY {order} v.uid)
                ) WHERE rank > {survivors}""",
                {"method": method},
            )
            connection.execute(
                "UPDATE verdict SET reason = 'duplicate: ' || $method WHERE uid IN (SELECT uid FROM lost)",
                {"method": method},
            )
            if method in choice.merging:
                connection.execute(f"INSERT INTO replaced SELECT uid, survivor, {place}, rank FROM lost")
    _merge_captions(connection, choice)
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
               (reason IS NULL)::INTEGER AS copies, merged
        FROM verdict LEFT JOIN placed USING (place) LEFT JOIN merged USING (uid) ORDER BY place"""
    )
    return _cut(connection, rows, sizes), funnel(counts, choice), {name: splits.get(name, 0) for name in shards.splits}


def _merge_captions(connection: duckdb.DuckDBPyConnection, choice: Choice) -> None:
    """Make the table `merged`: uid of a kept pair, and the captions that it gets from those that it replaces."""
    connection.execute("CREATE TABLE merged (uid VARCHAR, merged VARCHAR[])")
    if not choice.merging:
        return
    # A survivor may be replaced itself by a later method: each step follows one of these.
    for _ in choice.merging:
        connection.execute(
            "UPDATE replaced SET survivor = later.survivor FROM replaced AS later WHERE replaced.survivor = later.uid"
        )
    connection.execute(
        f"""
        INSERT INTO merged
        WITH said AS (
            SELECT uid, captions FROM judged
            WHERE uid IN (SELECT uid FROM replaced UNION ALL SELECT survivor FROM replaced)),
        given AS (
            SELECT r.survivor, r.method, r.rank, r.uid, unnest(s.captions) AS caption,
                   generate_subscripts(s.captions, 1) AS place
            FROM replaced r JOIN said s ON s.uid = r.uid JOIN verdict v ON v.uid = r.survivor WHERE v.reason IS NULL),
        once AS (
            SELECT survivor, caption, min((method, rank, uid, place)) AS order_of
            FROM given GROUP BY survivor, caption),
        bounded AS (
            SELECT o.survivor, o.caption, row_number() OVER (PARTITION BY o.survivor ORDER BY o.order_of) AS number
            FROM once o JOIN said s ON s.uid = o.survivor WHERE NOT list_contains(s.captions, o.caption))
        SELECT survivor, list(caption ORDER BY number) FROM bounded WHERE number <= {MERGED} GROUP BY survivor"""
    )


def with_merged(captions: pa.ChunkedArray, merged: pa.ChunkedArray) -> pa.Array:
    """list<string> [n]: each row's own captions, and behind them those that it got, where there are any."""
    own, got = captions.combine_chunks(), merged.combine_chunks()
    counts = pc.add(*(pc.fill_null(pc.list_value_length(lists), 0) for lists in (own, got)))
    offsets = np.concatenate([[0], np.cumsum(counts.to_numpy())]).astype(np.int32)
    rows = pa.chunked_array([pc.list_parent_indices(own), pc.list_parent_indices(got)])
    values = pa.chunked_array([own.flatten(), got.flatten()])
    order = np.argsort(rows.to_numpy(), kind="stable")  # a row's own stand before those it got
    return pa.ListArray.from_arrays(pa.array(offsets), values.take(pa.array(order)).combine_chunks())


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
        yield held.slice(0, size).select(SETTLED.names).cast(SETTLED)
        held = held.slice(size)
    connection.close()
