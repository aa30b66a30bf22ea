"""When the rest of a part is not waited for any longer."""

import math
import time

_MOST = 0.9  # of a part's URLs: what is left then is its tail
_DEADLINES = 2  # of one URL: how many a part may be silent, and its tail may take in any case
_LONGER = 3600.0  # seconds that the tail may take above that while its hosts answer


class Watch:
    """Looks at how the URLs of one part come along. Times are time.monotonic's, in seconds.

    count: its URLs. deadline: what one URL may take. Unless a host is to be asked later (`opens`), hosts make nobody
    wait for longer without a word (`hosts.py`): twice the deadline without a byte means that nothing will come.
    """

    def __init__(self, count: int, deadline: float) -> None:
        self._tail = count - math.ceil(_MOST * count)
        self._patience = _DEADLINES * deadline
        self._began = self._used = time.monotonic()
        self._tail_until = math.inf

    def used(self) -> None:
        """An answer has been dealt with."""
        self._used = time.monotonic()

    def verdict(self, left: int, heard: float, opens: float) -> str | None:
        """Why the `left` URLs are not waited for, or None. heard: when a byte came last. opens: when the last of the
        hosts that are spared for now (host_rate, Crawl-delay) may be asked again."""
        now = time.monotonic()
        answered = max(self._used, opens)
        if now - max(answered, heard) > self._patience:
            return f"nothing came to the whole part for {self._patience:g} s"
        if left <= self._tail:
            if self._tail_until == math.inf:
                self._tail_until = now + max(now - self._began, self._patience)
            if now > max(self._tail_until, answered + self._patience):
                return f"not done when the other {_MOST:.0%} of the part had been for as long again as they took"
            if now > self._tail_until + _LONGER:
                return f"its host is too slow for its many URLs: the other {_MOST:.0%} of the part were done long ago"
        return None
