"""When the rest of a part is not waited for any longer."""

import math
import time

_MOST = 0.9  # of a part's URLs: what is left then is its tail
_DEADLINES = 2  # of one URL: how many a part may be silent, and its tail may take in any case


class Watch:
    """Looks at how the URLs of one part come along. Times are time.monotonic's, in seconds.

    count: its URLs. deadline: what one URL may take. Hosts make nobody wait for longer without a word (`hosts.py`), so
    that twice the deadline without a byte means that nothing will come.
    """

    def __init__(self, count: int, deadline: float) -> None:
        self._tail = count - math.ceil(_MOST * count)
        self._patience = _DEADLINES * deadline
        self._began = self._used = time.monotonic()
        self._tail_until = math.inf

    def used(self) -> None:
        """A body has been dealt with."""
        self._used = time.monotonic()

    def verdict(self, left: int, heard: float) -> str | None:
        """Why the `left` URLs are not waited for, or None. heard: when a byte came last."""
        now = time.monotonic()
        if now - max(self._used, heard) > self._patience:
            return f"nothing came to the whole part for {self._patience:g} s"
        if left <= self._tail:
            if self._tail_until == math.inf:
                self._tail_until = now + max(now - self._began, self._patience)
            if now > self._tail_until:
                return f"not done when the other {_MOST:.0%} of the part had been for as long again as they took"
        return None
