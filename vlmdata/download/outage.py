"""When nearly all fails in one way, this machine or its network is at fault, not the URLs: the download stops."""

from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pyarrow.compute as pc

from vlmdata.download.forgotten import FORGOTTEN
from vlmdata.errors import OutageError
from vlmdata.select import CONSENT_STATUSES

# Of fewer rows nothing is concluded.
AT_LEAST = 200
_LATEST = datetime.max.replace(tzinfo=UTC)
_ASIDE = (*CONSENT_STATUSES, FORGOTTEN, None)  # None: a tombstone
ADVICE = {
    "dns": "look at this machine's network and its DNS servers",
    "connect": "look at the network, a firewall or a proxy between; a server of your own must be running",
    "timeout": "look at the network, a firewall or a proxy between; download.timeout may be too short",
    "tls": "look at this machine's clock and its certificates; a proxy may stand between",
    "type": "look at what is sent in place of images: a login page, a proxy's message",
    "decode": "look at one of them; if other programs show it, look at what is installed: vlmdata doctor",
}


class Tally:
    """How many rows ended in which class, of those that were asked for."""

    def __init__(self, stop_share: float, expected: Iterable[str] = ()) -> None:
        """expected: classes that say nothing, since the rows were chosen for having ended so before."""
        self._share, self.classes = stop_share, [name for name in ADVICE if name not in set(expected)]
        self._counts: Counter[str] = Counter()
        self._words: dict[str, str] = {}

    def add(self, status: str, error: str | None) -> None:
        """A row's outcome."""
        if status not in _ASIDE:
            self._counts[status] += 1
            self._words.setdefault(status, error or "-")

    def add_part(self, images: pa.Table) -> None:
        """The outcomes of a part's rows."""
        rows = images.select(["download_status", "error"])
        ended = rows.group_by("download_status", use_threads=False).aggregate([([], "count_all"), ("error", "min")])
        for row in ended.to_pylist():
            if row["download_status"] not in _ASIDE:
                self._counts[row["download_status"]] += row["count_all"]
                self._words.setdefault(row["download_status"], row["error_min"] or "-")

    @property
    def tried(self) -> int:
        return self._counts.total()

    @property
    def most(self) -> str | None:
        """The class in which most rows ended, of those that are looked at."""
        return max(self.classes, key=lambda name: self._counts[name], default=None)

    def worst(self, open_: int = 0) -> str | None:
        """The class of more than the share of all rows, should the `open_` ones still under way end otherwise."""
        most = self.most
        return most if most and self._counts[most] > self._share * (self.tried + open_) else None

    def check(self, open_: int = 0) -> None:
        """Raise OutageError when one class is absurd. `open_`: rows still under way."""
        worst = self.worst(open_) if self.tried >= AT_LEAST else None
        if worst:
            raise OutageError(
                f"the download was stopped: {self._counts[worst]:,} of {self.tried:,} pairs ended as {worst!r} "
                f"({self._words[worst]}): {ADVICE[worst]}; none of that is recorded, and the same command tries again "
                "(for a list that is truly so: download.stop_share=1)"
            )


def struck(ended: Iterable[tuple[str, pa.Table, Iterable[str]]], stop_share: float, deadline: float) -> list[str]:
    """The names of the parts of which an outage has rows: nearly all of a part ended in one class, or one of its rows
    was asked for when nothing was answered any more.

    ended: (name, rows with `download_status`, `error` and `fetched_at`, classes that say nothing) of each part.
    deadline: seconds that an answer may take; what was asked for that long before the last answer may be struck, too.
    """
    lost: set[str] = set()
    failed: dict[str, datetime] = {}
    answers: list[datetime] = []
    for name, rows, expected in ended:
        tally = Tally(stop_share, expected)
        tally.add_part(rows)
        if tally.worst():
            lost.add(name)
        failures = pc.is_in(rows["download_status"], value_set=pa.array(tally.classes, pa.string()))
        aside = pc.is_in(rows["download_status"], value_set=pa.array([*_ASIDE, *ADVICE], pa.string()))
        answer, failure = _last(rows, pc.invert(aside)), _last(rows, failures)
        if pc.any(pc.and_(failures, rows["fetched_at"].is_null())).as_py():
            # Its host was away already, for its robots.txt or for the URLs before it: so late it may have been.
            failure = max((time for time in (answer, failure) if time is not None), default=_LATEST)
        if failure is not None:
            failed[name] = failure
        if answer is not None:
            answers.append(answer)
    since = max(answers) - timedelta(seconds=deadline) if answers else None
    return sorted(lost | {name for name, time in failed.items() if since is None or time > since})


def _last(rows: pa.Table, mask: pa.ChunkedArray) -> datetime | None:
    """When the last of the rows in the mask was asked for; UTC."""
    found = pc.max(rows["fetched_at"].filter(mask)).as_py()
    return None if found is None else found.replace(tzinfo=UTC)


class Progress(Tally):
    """The tally of one part while it is under way, URL by URL."""

    def __init__(
        self, stop_share: float, expected: Iterable[str], urls: Iterable[str], at_once: int, most: float = 1
    ) -> None:
        """urls: of the part. at_once: how many of them may be on their way. most: of a host that has more than this
        share of the URLs nothing is said: it may be down, and all the rest be well."""
        super().__init__(stop_share, expected)
        self._left = Counter(_host(url) for url in set(urls))
        self._aside = {host for host, count in self._left.items() if count > most * self._left.total()}
        self._ended: dict[str, set[str]] = {}
        self._at_once = at_once

    def told(self, url: str, status: str, error: str | None) -> None:
        """A URL's outcome; may raise OutageError.

        What fails at once comes before what succeeds slowly. So the URLs on their way count as if they came, and so do
        all those of a host that has answered in another way before.
        """
        host = _host(url)
        if host in self._aside:
            return
        self.add(status, error)
        self._left[host] -= 1
        self._ended.setdefault(host, set()).add(status)
        if self.tried % AT_LEAST == 0:
            good = [host for host, ended in self._ended.items() if ended - {self.most}]
            self.check(self._at_once + sum(self._left[host] for host in good))


def _host(url: str) -> str:
    return url.partition("://")[2].partition("/")[0]
