"""Which pairs are kept, and why the others are not: rules, then the survivor of each duplicate group, then shards.

Every pair ends with one verdict. The order of reasons: forgotten, consent, download, rules in order, duplicates by
method (those that stand in an evaluation set first), top, balance, sample. What the row alone decides is `judge`; what
only a look at all pairs decides is `settle`.
"""

from vlmdata.select.captions import with_merged
from vlmdata.select.choice import CONSENT_STATUSES, ERROR_CLASSES, FAILURES, SURVIVORS, Choice
from vlmdata.select.funnel import funnel
from vlmdata.select.judge import denials, judge_part
from vlmdata.select.settle import settle

VERSION = 3

__all__ = [
    "CONSENT_STATUSES",
    "ERROR_CLASSES",
    "FAILURES",
    "SURVIVORS",
    "VERSION",
    "Choice",
    "denials",
    "funnel",
    "judge_part",
    "settle",
    "with_merged",
]
