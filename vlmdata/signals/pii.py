"""Personal data in captions: e-mail addresses, phone numbers, numbers of payment cards.

Patterns find what is written the usual way; what is spelt out or split up on purpose is not found.
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vlmdata import recipe
from vlmdata.rules import connect
from vlmdata.schemas import conform, table_schema
from vlmdata.signals.pictures import Pictures

VERSION = 1
IMAGES = False

# A name, an at sign, and a host whose last label has letters alone (RFC 5321, without quoted names and addresses).
_EMAIL = r"(?i)[a-z0-9](?:[a-z0-9._%+-]{0,62}[a-z0-9_+-])?@(?:[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z]{2,24}\b"
_NO_EMAIL = r"(?i)\.(?:jpe?g|png|gif|webp|svg|avif|bmp|tiff?|pdf)$"  # photo@2x.png

# What is taken for a phone number: digits in groups that begin as one does. Dates, prices and catalogue numbers do not.
_PHONE = (
    r"\+[1-9]\d{0,2}(?:[ ./-]?\(?\d{1,6}\)?){2,6}",  # with the country's code (E.164)
    r"(?:\b1[ .-]?)?(?:\([2-9]\d{2}\) ?|\b[2-9]\d{2}[.-])[2-9]\d{2}[ .-]\d{4}\b",  # North America
    r"\b0[1-9](?:[ .]\d\d){4}\b",  # France
    r"\(?\b0[1-9]\d{1,4}\)?(?: ?[/-] ?| )\d{3,4}[ -]?\d{3,5}\b",  # national, with the area's code: 030 / 1234567
    r"(?i)\b(?:tel(?:e(?:ph|f)one?)?|t[eé]l|phone|fon|call|ph|mob(?:ile)?|handy|fax|whatsapp)\b[.: ]{1,3}"
    r"\(?\d(?:[ ./()-]{0,2}\d){5,14}\b",  # behind a word that says so
)
_LEAST_DIGITS, _MOST_DIGITS = 7, 15  # of a phone number; 15 by E.164

# The numbers that the card networks give (ISO/IEC 7812), in their groups with blanks or hyphens, or without.
_CARD = (
    r"\b(?:(?:4\d{3}|5[1-5]\d{2}|2[2-7]\d{2}|6(?:011|4[4-9]\d|5\d{2}|2\d{2})|35[2-8]\d)[ -]?\d{4}[ -]?\d{4}[ -]?\d{4}"
    r"|3[47]\d{2}[ -]?\d{6}[ -]?\d{5}|3(?:0[0-5]|[68]\d)\d[ -]?\d{6}[ -]?\d{4})\b"
)


def schemas(options: recipe.PiiSignal) -> dict[str, pa.Schema]:
    """The tables that `measure` gives."""
    return {"pii": table_schema("pii")}


def identity(options: recipe.PiiSignal) -> dict[str, str]:
    """Nothing: no model is used."""
    return {}


def measure(rows: pa.Table, images: Pictures | None, options: recipe.PiiSignal) -> dict[str, pa.Table]:
    """The `pii` table of some rows; reads the columns uid and caption.

    pii_email, pii_phone, pii_card: how many there are, 0 or more; null for a null caption. A card's number has the
    first digits and the length of a card network's, and the right check digit (Luhn, ISO/IEC 7812-1): one in ten of
    other numbers of that look has it too. A phone number has 7 to 15 digits. Only the digits 0 to 9 are looked at.
    """
    caption = pa.chunked_array(rows["caption"]).combine_chunks()
    emails, of_emails = _found(caption, _EMAIL)
    is_email = pc.invert(pc.match_substring_regex(emails, _NO_EMAIL))
    phones, of_phones = _found(caption, "|".join(_PHONE))
    digits = pc.count_substring_regex(phones, r"\d")
    is_phone = pc.and_(pc.greater_equal(digits, _LEAST_DIGITS), pc.less_equal(digits, _MOST_DIGITS))
    cards, of_cards = _found(caption, _CARD)
    absent = caption.is_null().to_numpy(zero_copy_only=False)

    def counted(of: np.ndarray, which: np.ndarray) -> pa.Array:
        return pa.array(np.bincount(of[which], minlength=len(caption)), pa.int32(), mask=absent)

    columns = {
        "uid": rows["uid"],
        "pii_email": counted(of_emails, is_email.to_numpy(zero_copy_only=False)),
        "pii_phone": counted(of_phones, is_phone.to_numpy(zero_copy_only=False)),
        "pii_card": counted(of_cards, passes_luhn(cards)),
    }
    return {"pii": conform(pa.table(columns), table_schema("pii"))}


def passes_luhn(numbers: pa.Array) -> np.ndarray:
    """bool [n]: whether the last digit of each number is its check digit (ISO/IEC 7812-1, annex B).

    numbers: strings; what is no digit from 0 to 9 is passed over.
    """
    digits = pc.utf8_lpad(pc.replace_substring_regex(numbers, r"[^0-9]", ""), 19, "0")
    digits = pc.utf8_slice_codeunits(digits, -19)  # no number of a card is longer
    if not len(digits):
        return np.zeros(0, bool)
    values = np.frombuffer("".join(digits.to_pylist()).encode(), np.uint8).reshape(-1, 19) - ord("0")
    values[:, -2::-2] *= 2
    values[values > 9] -= 9
    return values.sum(1) % 10 == 0


def _found(caption: pa.Array, pattern: str) -> tuple[pa.Array, np.ndarray]:
    """What matches, and the row of each match. Only captions with a match go through DuckDB, which gives all of one."""
    rows = np.flatnonzero(pc.fill_null(pc.match_substring_regex(caption, pattern), False))
    if not len(rows):
        return pa.array([], pa.string()), rows
    chosen = connect().from_arrow(pa.table({"row": rows, "caption": caption.take(pa.array(rows))}))
    # no pattern of this module has a quote in it
    found = chosen.project(f"row, unnest(regexp_extract_all(caption, '{pattern}')) AS found").to_arrow_table()
    return found["found"].combine_chunks(), found["row"].to_numpy()
