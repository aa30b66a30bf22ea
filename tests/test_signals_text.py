"""Captions: counts, repetition, boilerplate, URLs, file names, profanity."""

import unicodedata

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import example, given, settings
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


def fasttext_tokens(caption: str) -> list[str]:
    """fastText's readWord, restated: word by word, a line feed behind a word is met again as a token of its own."""
    tokens, word = [], ""
    for character in caption + " ":
        if character not in " \n\r\t\v\f\0":
            word += character
            continue
        tokens += [word] if word else []
        tokens += ["</s>"] if character == "\n" else []
        word = ""
    return tokens


def repeated(items: list | str, n: int) -> float:
    runs = [tuple(items[k : k + n]) for k in range(len(items) - n + 1)]
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


# what real captions are made of, and what they should not be
CAPTIONS = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=30),
    st.text("ab \n\t\0\x1c\x85\u00a0\u0301é.", max_size=40),
    st.lists(st.sampled_from(["buy", "Buy", "now", "straße", "İ", "猫", "👩‍👩‍👧", "ก็็็็็็"]), max_size=12).map(" ".join),
)


@settings(max_examples=40, deadline=None)
@example(["a\u00a0\t", "\t\u3000", "a\x1c\u2028\x85b"])
@given(st.lists(CAPTIONS, min_size=1, max_size=20))
def test_counts_and_shares_are_those_of_python(captions: list[str]) -> None:
    found = measured([*captions, None])
    lower = [pc.utf8_lower(c).as_py() for c in captions]  # Python's makes two characters of İ
    expected = {
        "chars": [len(c) for c in captions],
        "words": [len(c.split()) for c in captions],
        "fasttext_tokens": [len(fasttext_tokens(c)) for c in captions],
        "repeated_words": [repeated(c.split(), 1) for c in lower],
        "repeated_word_pairs": [repeated(c.split(), 2) for c in lower],
        "repeated_chars": [repeated(c, 5) for c in lower],
    }
    for column, values in expected.items():
        assert found[column].to_pylist() == [*(pytest.approx(value, rel=1e-6) for value in values), None], column


@settings(max_examples=40, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs", "Cn"]), min_size=1, max_size=30))
def test_special_characters_are_what_is_no_letter_mark_number_or_space(caption: str) -> None:
    special = sum(unicodedata.category(c)[0] not in "LMNZ" and not c.isspace() for c in caption)
    assert measured([caption])["special_chars"].to_pylist() == [pytest.approx(special / len(caption), rel=1e-6)]


def test_repetition_is_the_share_of_what_stood_before() -> None:
    found = measured(["dog dog DOG dog", "a b c", " buy  now\nbuy now", "", None, "=" * 14, "a dog on the grass"])
    assert found["repeated_words"].to_pylist() == [0.75, 0, 0.5, 0, None, 0, 0]
    assert found["repeated_word_pairs"].to_pylist() == [pytest.approx(2 / 3), 0, pytest.approx(1 / 3), 0, None, 0, 0]
    assert found["repeated_chars"].to_pylist()[4:] == [None, pytest.approx(0.9), 0]


def test_a_row_knows_nothing_of_the_others() -> None:
    captions = ["b a", "a b", "a b a b", "0 1", "1 0", "aaaaaa", "aaaaaaa", ""] * 3
    together = measured(captions).drop("uid").to_pylist()
    assert together == [measured([c]).drop("uid").to_pylist()[0] for c in captions]


@pytest.mark.parametrize(
    "caption",
    [
        "Image may contain: 1 person, outdoor", "CLICK TO ENLARGE", "Click on the image for a larger view",
        "A dog - Royalty-Free Stock Photo", "Red car (stock image)", "Bild anklicken", "Hund: zum Vergrößern",
        "Cliquez pour agrandir", "Haga clic para ampliar", "photo", " [Image] ", "No image available", "点击查看大图",
        "Photo credit: J. Doe", "стоковое фото", "画像をクリックすると拡大",
    ],
)  # fmt: skip
def test_boilerplate_is_seen(caption: str) -> None:
    assert measured([caption])["boilerplate"].to_pylist() == [True]


@pytest.mark.parametrize(
    "caption",
    [
        "a photo of a dog", "a crane loading a ship", "livestock images", "clicking a pen", "picture frames on a wall",
        "an image of the moon", "they click for hours", "", "ein Bild von einem Hund",
        "the photo shows a stock of wood",
    ],
)  # fmt: skip
def test_captions_without_boilerplate(caption: str) -> None:
    assert measured([caption])["boilerplate"].to_pylist() == [False]


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
        "Screen Shot 2021-01-01 at 10.10.10",
        "SAM_0123",
        "MOV_0012",
        "WP_20150101_001",
        "VID-20190101-WA0001",
        "SCAN0001 (2)",
        "logo.ai",
        "DSC_0001.raw",
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
        "Sam 2019",
        "Sam-2019",
        "Vid 2020",
        "Scan 1234",
        "P 1000",
        "Mov 1999",
        "WP 1000",
        "Img 2020",
        "We love open.ai",
        "the food is raw.raw",
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
    captions += ["e\u0301" + "\u0301" * 500_000, "click " * 100_000, "\n" * 500_000]
    found = measured(captions)
    assert found["caption_is_file_name"].to_pylist() == [False] * 7
    assert found["repeated_chars"].to_pylist()[4] > 0.99


def test_the_identity_names_the_models_files() -> None:
    found = text.identity(OPTIONS)
    assert {"alt-profanity-check", "scikit-learn"} <= set(found)
    assert [len(value) for name, value in found.items() if name.startswith("profanity_check/")] == [64, 64]
