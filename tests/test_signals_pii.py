"""Captions: e-mail addresses, phone numbers, numbers of payment cards."""

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlmdata import recipe
from vlmdata.schemas import table_schema
from vlmdata.signals import pii

OPTIONS = recipe.PiiSignal(kind="pii")


def measured(captions: list[str | None]) -> pa.Table:
    rows = pa.table({"uid": [f"{n:032x}" for n in range(len(captions))], "caption": pa.array(captions, pa.string())})
    return pii.measure(rows, None, OPTIONS)["pii"]


def test_columns_are_those_of_the_schema_and_rows_keep_their_order() -> None:
    captions = [None, "a@b.example and c@d.example", "", "call 415-555-0132", "x", "4111 1111 1111 1111 x@y.example"]
    found = measured(captions)
    assert found.schema == table_schema("pii") == pii.schemas(OPTIONS)["pii"]
    assert found["pii_email"].to_pylist() == [None, 2, 0, 0, 0, 1]
    assert found["pii_phone"].to_pylist() == [None, 0, 0, 1, 0, 0]
    assert found["pii_card"].to_pylist() == [None, 0, 0, 0, 0, 1]
    assert measured([]).schema == table_schema("pii")


@pytest.mark.parametrize(
    ("caption", "count"),
    [
        ("write to jane.doe+photos@mail.example.co.uk.", 1),
        ("<A_B@EXAMPLE.ORG>, c@x-y.example", 2),
        ("photo@2x.png", 0),
        ("meet @ example.org", 0),
        ("@user on example.org", 0),
        ("a@b", 0),
        ("me@localhost.1", 0),
        ("", 0),
    ],
)
def test_email_addresses_are_counted(caption: str, count: int) -> None:
    assert measured([caption])["pii_email"].to_pylist() == [count]


@pytest.mark.parametrize(
    "caption",
    [
        "+49 30 1234567", "+1 (415) 555-0132", "+44.20.7946.0958", "(415) 555-0132", "1-415-555-0132", "415.555.0132",
        "01 23 45 67 89", "030 / 1234567", "(030) 123 4567", "0171-1234567", "Tel.: 555 01 32", "phone 5550132",
    ],
)  # fmt: skip
def test_phone_numbers_are_seen(caption: str) -> None:
    assert measured([caption, f"Call us: {caption}, or write"])["pii_phone"].to_pylist() == [1, 1]


@pytest.mark.parametrize(
    "caption",
    [
        "2019-10-12", "12.10.2019 14:30", "10/12/2019", "1920 x 1080", "ISBN 978-3-16-148410-0", "$ 1,234,567.00",
        "100-200-300", "50+ 100 pieces", "model 2342-5671", "IMG_20190101_123456", "+5 points", "1234567890",
        "51.5074, -0.1278", "call of duty 4 1", "",
    ],
)  # fmt: skip
def test_other_numbers_are_no_phones(caption: str) -> None:
    assert measured([caption])["pii_phone"].to_pylist() == [0]


# numbers that the networks publish for tests
CARDS = [
    "4111111111111111", "5555555555554444", "2223003122003222", "378282246310005", "6011111111111117",
    "3530111333300000", "30569309025904", "38520000023237", "6200000000000005",
]  # fmt: skip


@pytest.mark.parametrize("card", CARDS)
def test_cards_are_seen_in_groups_and_without(card: str) -> None:
    cuts = [4, 10] if len(card) < 16 else [4, 8, 12]
    groups = [card[a:b] for a, b in zip([0, *cuts], [*cuts, None], strict=True)]
    wrong = card[:-1] + str((int(card[-1]) + 1) % 10)
    captions = [card, "-".join(groups), f"12/25 {' '.join(groups)} 123", wrong, f"9{card}", f"{card}0"]
    assert measured(captions)["pii_card"].to_pylist() == [1, 1, 1, 0, 0, 0]


@settings(max_examples=20, deadline=None)
@given(st.lists(st.text("0123456789", min_size=1, max_size=19), min_size=1, max_size=50))
def test_the_check_digit_is_luhns(numbers: list[str]) -> None:
    def luhn(number: str) -> bool:
        doubled = [int(d) * (1 + place % 2) for place, d in enumerate(reversed(number))]
        return sum(d - 9 if d > 9 else d for d in doubled) % 10 == 0

    assert pii.passes_luhn(pa.array(numbers)).tolist() == [luhn(n) for n in numbers]


@settings(max_examples=15, deadline=None)
@given(st.lists(st.one_of(st.none(), st.text(st.characters(exclude_categories=["Cs"]), max_size=40)), max_size=20))
def test_any_caption_has_its_counts_whatever_stands_beside_it(captions: list[str | None]) -> None:
    found = measured([*captions, "a@b.example"])
    assert found["pii_email"].to_pylist() == [*measured(captions)["pii_email"].to_pylist(), 1]
    for name in found.column_names[1:]:
        assert [n is None for n in found[name].to_pylist()] == [c is None for c in [*captions, ""]]


def test_a_hostile_caption_takes_no_time() -> None:
    # an expression that backtracks would never end here
    captions = ["a@" * 200_000, "a." * 200_000 + "@", "1 " * 200_000, "+1" * 200_000, "(0" * 200_000, "tel " * 100_000]
    assert measured([*captions, "é\u0301" * 200_000])["pii_email"].to_pylist() == [0] * 7
