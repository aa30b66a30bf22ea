"""What a selection is made of: the words of reasons, and the recipe's choice without its tables."""

from dataclasses import dataclass

from vlmdata.recipe import Sample, Top
from vlmdata.rules import Expression, Order

CONSENT_STATUSES = ("robots", "noai", "tdm", "noml", "optout")
ERROR_CLASSES = (
    "timeout", "dns", "connect", "tls", "4xx", "5xx", "too_large", "type", "decode", "pixels",
    "hash_mismatch", "blocked",
)  # fmt: skip
FAILURES = (*ERROR_CLASSES, *CONSENT_STATUSES)  # every download_status but success
# SemDeDup's names (Abbas et al. 2023) -> SQL over `verdict` v and `duplicates` d.
SURVIVORS = {
    "hard": "d.centroid_similarity ASC NULLS LAST, ",
    "easy": "d.centroid_similarity DESC NULLS LAST, ",
    "random": "md5('survivor' || v.uid), ",
}


@dataclass(frozen=True)
class Choice:
    """A selection: the rules in order, the signals' columns that an `after` may leave unmeasured, the methods of
    deduplication in the order in which they reject, and the survivor.

    top: what is kept of those that are left, by the value of `top_by`. balanced: whether pairs are balanced. sample:
    how many are drawn, by the value of `weight`.
    ahead: a name of SURVIVORS whose order comes before the survivor's. merging: the methods of deduplication whose
    survivor gets the others' captions.
    """

    rules: dict[str, Expression]
    unmeasured: frozenset[str]
    methods: tuple[str, ...]
    survivor: tuple[Order, ...]
    balanced: bool = False
    sample: Sample | None = None
    weight: Expression | None = None
    top: Top | None = None
    top_by: Expression | None = None
    ahead: str | None = None
    merging: frozenset[str] = frozenset()
