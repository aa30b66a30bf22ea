"""What hosts and pages say about the use of an image, and whether the recipe refuses it for that.

robots.txt is read as RFC 9309 says. In `X-Robots-Tag`, `noai` and `noimageai` are a no to training; `noindex`,
`noimageindex` and `none` count as the robots' no, as img2dataset's own default has it: a picture that no index may
hold does not go into a dataset. `tdm-reservation` is the TDM Reservation Protocol's header, which comes before the
host's file (`tdmrep.py`). Nothing said is null, which is not `allow`. docs/consent.md has the table.
"""

from collections.abc import Iterable, Mapping
from importlib.metadata import version
from typing import Any

from protego import Protego

from vlmdata.download.tdmrep import Reservations
from vlmdata.recipe import CrawlSource, Download
from vlmdata.sources.page import product, reservation, robots_directives

WORDS = ("robots", "noai", "tdm", "noml")
Said = dict[str, str | None]

# RFC 9309, 2.5: a crawler must read at least 500 kibibytes.
ROBOTS_BYTES = 500 * 1024


def refusal(said: Mapping[str, str | None] | None, respect: Iterable[str]) -> str | None:
    """The first word that says `deny` and that the recipe respects, or None."""
    return next((word for word in WORDS if said and said.get(word) == "deny" and word in respect), None)


def user_agent(options: Download | CrawlSource) -> str:
    """`vlmdata/0.1.0 (+contact)`: who asks, and how to reach them."""
    name = options.agent if "/" in options.agent else f"{options.agent}/{version('vlmdata')}"
    return f"{name} (+{options.contact})" if options.contact else name


def add_headers(said: Said, headers: Any, agent: str, filed: str | None = None) -> None:
    """Note in `said` what a response's headers say to `agent`; a no of an earlier answer stays a no.

    headers: a multidict, as aiohttp has it. filed: what the host's tdmrep.json says of the URL, which counts where the
    headers say nothing about it.
    """
    directives = robots_directives(headers.getall("X-Robots-Tag", ()), agent)
    for word, meant in (
        ("noai", {"noai", "noimageai"}),
        ("noml", {"noml"}),
        ("robots", {"noindex", "noimageindex", "none"}),
    ):
        if directives & meant:
            said[word] = "deny"
    add_tdm(said, reservation(headers.getall("tdm-reservation", ())) or filed)


def add_tdm(said: Said, word: str | None) -> None:
    """Note what one answer on the way says of the reservation of rights."""
    if word == "deny" or said["tdm"] is None:
        said["tdm"] = word


class Robots:
    """What a host's robots.txt allows to one agent; `reserved` is what its tdmrep.json, asked for next, says."""

    def __init__(self, status: int, body: bytes, agent: str) -> None:
        """status, body: the answer to the request for robots.txt. A 4xx says that there are no rules; a 429 or a
        5xx means that nothing may be fetched (RFC 9309, 2.3.1)."""
        self._agent = product(agent)
        self.reserved = Reservations()
        self.closed = status == 429 or status >= 500
        self.delay = 0.0  # seconds between requests that it asks for
        self._rules = None
        if 200 <= status < 300:
            self._rules = Protego.parse(body[:ROBOTS_BYTES].decode("utf-8-sig", "replace"))
            self.delay = max(0.0, self._rules.crawl_delay(self._agent) or 0.0)
        self.reason = f"robots.txt answered {status}" if self.closed else "robots.txt says no"

    def allows(self, url: str) -> bool:
        if self._rules is None:
            return not self.closed
        return self._rules.can_fetch(url, self._agent)
