"""Captions: counts, repetition, URLs, file names, profanity."""

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlmdata import recipe
from vlmdata.schemas import table_schema
from vlmdata.signals import text

OPTIONS = recipe.TextSignal(kind="text")


def measured(captions: list[str | None]) -> pa.Table:
    rows = pa.table({"uid": [f"{n:032x}" for n in range(len(captions))], "caption": pa.array(captions, pa.string())})
    return text.measure(rows, None, OPTIONS)["text"]


def test_columns_are_those_of_the_schema_and_rows_keep_their_order() -> None:
    found = measured(["a", "b", None])
    assert found.schema == table_schema("text") == text.schemas(OPTIONS)["text"]
    assert found["uid"].to_pylist() == [f"{n:032x}" for n in range(3)]
    assert measured([]).schema == table_schema("text")


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=30), min_size=1, max_size=20))
def test_counts_are_those_of_python(captions: list[str]) -> None:
    found = measured(captions)
    assert found["chars"].to_pylist() == [len(c) for c in captions]
    # Python also splits at the separators U+001C to U+001F, Arrow at the same characters: both follow Unicode
    assert found["words"].to_pylist() == [len(c.split()) for c in captions]


def test_repeated_words_is_the_share_of_words_that_stood_before() -> None:
    found = measured(["dog dog DOG dog", "a b c", " buy  now\nbuy ", "", None])["repeated_words"].to_pylist()
    assert found == [0.75, 0.0, pytest.approx(1 / 3), 0.0, None]


@pytest.mark.parametrize(
    "caption",
    [
        "https://example.org/a.jpg",
        " HTTP://EXAMPLE.ORG ",
        "www.example.org",
        "ftp://x/y",
        "example.co.uk/photos/1",
        "s3://bucket/key",
    ],
)
def test_urls_are_seen(caption: str) -> None:
    assert measured([caption])["caption_is_url"].to_pylist() == [True]


@pytest.mark.parametrize(
    "caption", ["see https://example.org", "and/or", "i.e./e.g.", "a dog", "", "5.5/10 stars", "C++://", "www"]
)
def test_captions_that_are_no_url(caption: str) -> None:
    assert measured([caption])["caption_is_url"].to_pylist() == [False]


@pytest.mark.parametrize(
    "caption",
    [
        "photo_01.jpg",
        "My Holiday.JPEG",
        "DSC01234",
        "_DSC1234",
        "IMG_20190101_123456",
        "IMG-20190101-WA0001",
        "P1010123",
        "dscn0042",
        "Screenshot_2021-01-01 at 10.10.10",
        "10154_9876_1234_n",
        "0123456789abcdef0123",
        "123e4567-e89b-12d3-a456-426614174000",
        " a.png\n",
    ],
)
def test_file_names_are_seen(caption: str) -> None:
    assert measured([caption])["caption_is_file_name"].to_pylist() == [True]


@pytest.mark.parametrize(
    "caption",
    [
        "a dog on the grass",
        "the .jpg",
        "P 90",
        "image 1",
        "Saving as file.jpg is easy",
        "2019",
        "facade",
        "two\nlines.jpg",
        "",
        "https://example.org/a.jpg",
        "scan 12",
    ],
)
def test_captions_that_are_no_file_name(caption: str) -> None:
    assert measured([caption])["caption_is_file_name"].to_pylist() == [False]


def test_profane_captions_score_high_and_others_low_whatever_stands_beside_them() -> None:
    captions = ["fuck this shit", "a dog on the grass", None, ""]
    profane, clean, absent, empty = measured(captions)["profanity"].to_pylist()
    assert profane > 0.95
    assert clean < 0.3
    assert absent is None
    assert 0 <= empty < 0.3
    assert measured(captions[1:2])["profanity"].to_pylist() == [clean]


def test_a_hostile_caption_takes_no_time() -> None:
    # an expression that backtracks would never end here
    captions = ["a-" * 200_000, "_DSC" + "1 " * 200_000 + "x", "x" * 500_000 + ".jpg", "www." + "a." * 200_000 + " "]
    assert measured(captions)["caption_is_file_name"].to_pylist() == [False] * 4


def test_the_identity_names_the_models_files() -> None:
    found = text.identity(OPTIONS)
    assert len(found) == 2
    assert all(len(value) == 64 for value in found.values())
