"""Whole columns of URLs give the answers that one URL after the other gives."""

import pyarrow as pa
import pytest

from vlmdata.download.forgotten import above, host_of_form
from vlmdata.download.optout import domain_form, url_form
from vlmdata.forget.columns import Places, among, text

URLS = [
    "https://example.org/a.jpg", "http://EXAMPLE.org:80/a.jpg", "HTTPS://example.org/%61.jpg", "//example.org/a.jpg",
    "http://example.org/a.jpg#part", "https://me:secret@example.org/a.jpg", "https://example.org/a.jpg?sig=1",
    " https://example.org/a.jpg ", "https://example.org:8080/a.jpg", "https://example.org", "example.org/a.jpg",
    "https://www.example.org/a.jpg", "https://notexample.org/a.jpg", "https://example.org.evil.net/a.jpg",
    "https://EXAMPLE.ORG./a.jpg", "https://[::1]/a.jpg", "https://münchen.example/a.jpg", "https://exam\u017fple.org/a",
    "https://e\u212aample.org/a.jpg", "https://example.org\n", "ftp://example.org/a.jpg", "https://", "", "http:/a.jpg",
    "photos:/a.jpg", "photos:/example.org/a.jpg", "photos:/film.mp4#t=1.000", "photos:/", "localhost:/a.jpg",
]  # fmt: skip


@pytest.mark.parametrize("wanted", URLS)
def test_the_rows_of_a_url_are_those_of_its_form(wanted):
    form = url_form(wanted)
    places = Places(pa.array([*URLS, None], pa.string()))
    found = places.forms_among({form}, {host_of_form(form)})
    assert found.tolist() == [*(url_form(url) == form for url in URLS), False]


@pytest.mark.parametrize("domain", ["example.org", "org", "xn--mnchen-3ya.example", "localhost", "[::1]", "ftp"])
def test_the_rows_of_a_domain_are_those_of_hosts_below_it_and_no_files(domain):
    local = ("photos:", "localhost:")
    expected = [not url.startswith(local) and domain in above(domain_form(url) or "") for url in URLS]
    assert Places(pa.array([*URLS, None], pa.string())).below({domain}).tolist() == [*expected, False]


def test_null_is_none_of_what_is_wanted_and_a_column_that_is_not_there_is_null():
    rows = pa.table({"a": pa.chunked_array([["x", None], ["y"]]), "b": pa.array(["x"] * 3).dictionary_encode()})
    assert among(text(rows, "a"), {"x"}).tolist() == [True, False, False]
    assert among(text(rows, "a"), set()).tolist() == [False] * 3
    assert among(text(rows, "b"), {"x": 1}).tolist() == [True] * 3
    assert text(rows, "c").null_count == 3
