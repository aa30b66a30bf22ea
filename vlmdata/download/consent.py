"""What hosts and pages say about the use of an image, and whether the recipe refuses it for that.

robots.txt is read as RFC 9309 says. In `X-Robots-Tag`, `noai` and `noimageai` are a no to training; `noindex`,
`noimageindex` and `none` count as the robots' no, as img2dataset's own default has it: a picture that no index may
hold does not go into a dataset. `tdm-reservation` is the TDM Reservation Protocol's header. Nothing said is null,
which is not `allow`.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from protego import Protego

from vlmdata.sources.page import robots_directives

WORDS = ("robots", "noai", "tdm", "noml")
Said = dict[str, str | None]

# RFC 9309, 2.5: a crawler must read at least 500 kibibytes.
ROBOTS_BYTES = 500 * 1024


def refusal(said: Mapping[str, str | None] | None, respect: Iterable[str]) -> str | None:
    """The first word that says `deny` and that the recipe respects, or None."""
    return next((word for word in WORDS if said and said.get(word) == "deny" and word in respect), None)


def product(agent: str) -> str:
    """The name in a user agent that robots.txt and headers address: `vlmdata` of `vlmdata/0.1 (+…)`."""
    return agent.partition("/")[0].strip().lower()


def add_headers(said: Said, headers: Any, agent: str) -> None:
    """Note in `said` what a response's headers say to `agent`; a no stays a no.

    headers: a multidict, as aiohttp has it.
    """
    directives = robots_directives(headers.getall("X-Robots-Tag", ()), agent)
    for word, meant in (
        ("noai", {"noai", "noimageai"}),
        ("noml", {"noml"}),
        ("robots", {"noindex", "noimageindex", "none"}),
    ):
        if directives & meant:
            said[word] = "deny"
    reservation = {value.strip() for value in headers.getall("tdm-reservation", ())}
    if "1" in reservation:
        said["tdm"] = "deny"
    elif "0" in reservation:
        said["tdm"] = said["tdm"] or "allow"


class Robots:
    """What a host's robots.txt allows to one agent."""

    def __init__(self, status: int, body: bytes, agent: str) -> None:
        """status, body: the answer to the request for robots.txt. A 4xx says that there are no rules; a 429 or a
        5xx means that nothing may be fetched (RFC 9309, 2.3.1)."""
        self._agent = agent
        self.closed = status == 429 or status >= 500
        self.delay = 0.0  # seconds between requests that it asks for
        self._rules = None
        if 200 <= status < 300:
            self._rules = Protego.parse(body[:ROBOTS_BYTES].decode("utf-8-sig", "replace"))
            self.delay = max(0.0, self._rules.crawl_delay(agent) or 0.0)
        self.reason = f"robots.txt answered {status}" if self.closed else "robots.txt says no"

    def allows(self, url: str) -> bool:
        if self._rules is None:
            return not self.closed
        return self._rules.can_fetch(url, self._agent)
