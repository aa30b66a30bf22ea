"""What counts as one URL, and the groups of it."""

import pyarrow as pa
import pytest

from vlmdata import dedup, recipe
from vlmdata.dedup.url import compared, normalised

URL = recipe.UrlDedup(kind="url")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("http://example.org/a.jpg", "https://example.org/a.jpg"),
        ("http://www.example.org/a.jpg", "http://example.org/a.jpg"),
        ("HTTP://Example.ORG/a.jpg", "http://example.org/a.jpg"),
        ("http://example.org:80/a.jpg", "http://example.org/a.jpg"),
        ("https://example.org:443/a.jpg", "http://example.org/a.jpg"),
        ("http://example.org/a.jpg#top", "http://example.org/a.jpg"),
        ("http://example.org/a.jpg?", "http://example.org/a.jpg"),
        ("http://example.org/a.jpg?utm_source=x&utm_medium=y", "http://example.org/a.jpg"),
        ("http://example.org/a.jpg?fbclid=1&w=2&GCLID=3", "http://example.org/a.jpg?w=2"),
        ("http://example.org/a/", "http://example.org/a"),
        ("http://example.org/a/?b=1", "http://example.org/a?b=1"),
        ("http://example.org/", "http://example.org"),
        ("http://example.org/%7Ea/%c3%bc.jpg", "http://example.org/~a/ü.jpg"),
        ("http://bücher.example/a.jpg", "http://xn--bcher-kva.example/a.jpg"),
        ("http://example.org/a b.jpg", "http://example.org/a%20b.jpg"),
    ],
)
def test_one_file_has_one_url(one, other):
    first, second = normalised(pa.array([one, other])).to_pylist()
    assert first == second


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("http://example.org/a.jpg", "http://example.org/A.jpg"),
        ("http://example.org/a.jpg", "http://example.org:8080/a.jpg"),
        ("https://example.org:80/a.jpg", "https://example.org/a.jpg"),
        ("http://example.org/a.jpg?w=100", "http://example.org/a.jpg?w=200"),
        ("http://example.org/a.jpg?a=1&b=2", "http://example.org/a.jpg?b=2&a=1"),
        ("http://example.org/a%2Fb.jpg", "http://example.org/a/b.jpg"),
        ("http://example.org/?id=1", "http://example.org/?id=2"),
        ("http://example.org/?xgclid=1", "http://example.org/"),
        ("http://wwwexample.org/a.jpg", "http://example.org/a.jpg"),
        ("http://m.example.org/a.jpg", "http://example.org/a.jpg"),
        ("films:/a.mp4#t=1", "films:/a.mp4#t=2"),
        ("photos:/a.jpg?utm_source=x", "photos:/a.jpg"),
        ("photos:/www.a.jpg/", "photos:/www.a.jpg"),
    ],
)
def test_two_files_have_two(one, other):
    first, second = normalised(pa.array([one, other])).to_pylist()
    assert first != second


def test_what_is_normalised_stays_so():
    urls = pa.array(["http://[", "https://u@example.org/%zz", "ftp://example.org/a", "http://example.org//a//?x=?y"])
    once = normalised(urls).to_pylist()
    assert once[0] == "http://[", "what is no URL of the web stays as it is"
    assert once[2:] == ["ftp://example.org/a", "//example.org//a?x=?y"]


def test_groups_hold_the_pairs_of_one_url_whatever_its_length():
    urls = ["https://www.example.org/a.jpg?utm_source=" + "x" * 3000, "photos:/a.jpg", "http://example.org/a.jpg"]
    found = compared(pa.table({"uid": [f"{n:032x}" for n in range(4)], "url": [*urls, urls[0]]}))
    groups = dedup.groups(URL, found["uid"], {"url": found["url"]})
    assert groups["uid"].to_pylist() == [f"{n:032x}" for n in (0, 2, 3)]
    assert set(groups["dup_method"].to_pylist()) == {"url"}
    assert dedup.compared(URL, found.select(["url"])).column_names == ["url"]
