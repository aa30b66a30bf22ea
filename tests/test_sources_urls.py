"""Links resolved the short way are what the long way makes of them."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlmdata.sources.urls import linked_url, web_url

SCHEMES = [
    "http://",
    "https://",
    "HTTP://",
    "mailto:",
    "//",
    "/",
    "?",
    "?x=1",
    "#f",
    ";",
    ";p",
    ":",
    ":80",
    "@",
    "u:p@",
]
PIECES = [*SCHEMES, "a", "B.png", "example.org", "x", ".", "..", "%20", "%", " ", "\t", "ä", "\\", *"[]{}&=|~'-_!"]
BASES = [
    "https://example.org/",
    "https://example.org/a/b.html?c=/d/",
    "http://u:p@x.org:8080/a/",
    "http://x.org/a//b/c",
    "http://x.org/./a/../b",
    "https://example.org/?q",
    "http://[::1]/a/b",
    "http://xn--bcher-kva.example/a;p/b;q",
]


@settings(max_examples=3_000, deadline=None, derandomize=True)
@given(st.lists(st.sampled_from(PIECES), max_size=9).map("".join), st.sampled_from(BASES))
def test_the_short_way_gives_what_the_long_way_does(link, base):
    assert linked_url(link, base) == web_url(link, base)


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize(
    "link",
    ["/..", "/./a", "a/../b", "a/.", "../a", "a//b", "//x/y", "/a//b", "a?b=/../c", "a;", "a:b", "/a:b", "", "?", "a?"],
)
def test_dots_slashes_and_empty_parts_are_no_exception(link, base):
    assert linked_url(link, base) == web_url(link, base)


@pytest.mark.parametrize("length", [1_999, 2_000, 4_060, 4_096, 4_097])
@pytest.mark.parametrize("start", ["", "/", "https://example.org/"])
def test_long_links_are_no_exception(length, start):
    link = start + "a" * (length - len(start))
    for base in (BASES[0], f"https://example.org/{'b' * 2_500}/"):
        assert linked_url(link, base) == web_url(link, base)
