"""One URL on its way, and what came of it."""

import time
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING

from vlmdata.download.consent import WORDS, Said
from vlmdata.download.hosts import Host
from vlmdata.download.optout import OptOut

if TYPE_CHECKING:
    from vlmdata.download.frontier import Frontier


@dataclass(frozen=True)
class Answer:
    """What came of one URL: `success` with a body, or an error class of DESIGN.md and words about it."""

    status: str
    error: str | None = None
    body: bytes | None = None
    consent: Said = field(default_factory=lambda: dict.fromkeys(WORDS))
    fetched_at: datetime | None = None


@dataclass(eq=False)
class Errand:
    """One URL on its way: the seconds left for it, and what its hosts said.

    optout: the list that no hop may meet. filed: what the tdmrep.json of the host that is asked now says of the URL.
    frontier: of the part that it belongs to; running: it has one of that part's places. host: where it has a turn.
    answered: whether the last request brought an answer's head. held: bytes of the budget that its body has.
    """

    left: float
    said: Said = field(default_factory=lambda: dict.fromkeys(WORDS))
    began: datetime | None = None
    optout: OptOut = field(default_factory=OptOut)
    filed: str | None = None
    frontier: "Frontier | None" = None
    running: bool = False
    host: Host | None = None
    answered: bool = False
    held: int = 0

    def heard(self) -> None:
        """Something came."""
        if self.frontier is not None:
            self.frontier.heard = time.monotonic()

    def leave(self) -> None:
        """Give back the turn at the host."""
        if self.host is not None:
            host, self.host = self.host, None
            host.leave()
