"""What a row alone decides: consent, download, and the rules in order."""

from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vlmdata.rules import evaluate
from vlmdata.select.choice import CONSENT_STATUSES, Choice
from vlmdata.select.top import keys


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
    (term_0, …); where pairs are ranked `top` (uint64, see `top.keys`), where they are sampled `weight` (double).
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
    if "url" in rows.column_names:  # only a tombstone has none
        reason = pc.if_else(rows["url"].is_null(), "forgotten", reason)
    values = evaluate(rows, choice.rules)
    for name, expression in choice.rules.items():
        value = values[name]
        gaps = [rows[column].is_null() for column in expression.columns if column in choice.unmeasured]
        gap = np.logical_or.reduce([g.to_numpy() for g in gaps]) if gaps else np.zeros(rows.num_rows, bool)
        unmeasured = pc.and_(value.is_null(), pa.array(gap))
        failed = pc.invert(pc.fill_null(value, False))
        verdict = pc.case_when(pc.make_struct(unmeasured, failed), f"{name}: not measured", name)
        reason = pc.coalesce(reason, verdict)
    terms = {f"term_{place}": order.expression for place, order in enumerate(choice.survivor)}
    ranks = {"select.top.by": choice.top_by, "select.sample.weights": choice.weight}  # as messages name them
    values = evaluate(rows, terms | {name: each for name, each in ranks.items() if each is not None})
    judged = pa.table({"uid": rows["uid"], "reason": pc.cast(reason, pa.string()), "sha256": rows["sha256"]})
    for name in terms:
        judged = judged.append_column(name, values[name])
    if choice.top_by is not None:
        judged = judged.append_column("top", pa.array(keys(values["select.top.by"])))
    if choice.weight is not None:
        judged = judged.append_column("weight", values["select.sample.weights"])
    return judged
