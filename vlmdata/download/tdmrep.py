"""What a host's `/.well-known/tdmrep.json` reserves: the TDM Reservation Protocol's file on the origin server.

https://www.w3.org/community/reports/tdmrep/CG-FINAL-tdmrep-20240510/ : the first rule whose `location` matches the
path counts, patterns are those of robots.txt, and what a response's headers or its HTML say comes before the file.
"""

import json
from typing import Any
from urllib.parse import urlsplit

from vlmdata.sources.urls import one_spelling

PATH = "/.well-known/tdmrep.json"
MOST_BYTES = 1 << 20
_MEANING = {"1": "deny", "0": "allow"}


class Reservations:
    """The rules of one origin, in their order. No rules: nothing is said."""

    def __init__(self, body: bytes = b"") -> None:
        """body: the file, or nothing where there is none. What is no JSON array of rules says nothing, and no rule
        without a location does."""
        self._rules = [
            (_pattern(rule["location"]), _MEANING.get(_number(rule.get("tdm-reservation"))))
            for rule in _array(body)
            if isinstance(rule, dict) and isinstance(rule.get("location"), str)
        ]

    def says(self, url: str) -> str | None:
        """`deny` where the rights are reserved, `allow` where they are not, None where nothing (valid) is said."""
        if not self._rules:
            return None
        parts = urlsplit(url)
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        # A pattern writes these two as percent-encodings where it means them and not what they stand for.
        path = one_spelling(path).replace("$", "%24").replace("*", "%2A")
        return next((said for pattern, said in self._rules if _matches(pattern, path)), None)


def _array(body: bytes) -> list[Any]:
    try:
        rules = json.loads(body.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return []
    return rules if isinstance(rules, list) else []


def _number(value: Any) -> str:
    """`1` and `0`, which some write as texts."""
    return str(value) if isinstance(value, int | str) and not isinstance(value, bool) else ""


def _pattern(location: str) -> tuple[list[str], bool]:
    """The pieces between the asterisks, and whether the path must end there."""
    location = one_spelling(location.strip())
    if not location.startswith(("/", "*")):
        location = f"/{location}"
    end = location.endswith("$")
    return location.removesuffix("$").split("*"), end


def _matches(pattern: tuple[list[str], bool], path: str) -> bool:
    # By hand and not by a regular expression, which a pattern with many asterisks would keep busy for ever.
    (first, *rest), end = pattern
    if not path.startswith(first):
        return False
    at = len(first)
    if not rest:
        return not end or at == len(path)
    for piece in rest[:-1]:
        found = path.find(piece, at)
        if found < 0:
            return False
        at = found + len(piece)
    if end:
        return path.endswith(rest[-1]) and len(path) - len(rest[-1]) >= at
    return path.find(rest[-1], at) >= 0
