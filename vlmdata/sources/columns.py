"""Whole columns made fit to be kept: text cleaned, signatures taken out of URLs, values given one type.

What is plain already, which is nearly all, goes through Arrow's kernels; only the rest is looked at row by row.
"""

import pyarrow as pa
import pyarrow.compute as pc

from vlmdata.sources.urls import clean_text, may_hold_secret, strip_signature

# What `clean_text` would change: NUL, white space other than single blanks between words.
_UNTIDY = r"[\x00\t-\r\x1c-\x1f\x{85}\x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000}]|  |^ | $"
_NUMBER = r"^[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]{1,3})?$"
_INTEGER = r"^[+-]?[0-9]{1,18}(?:\.0*)?$"
_LONG_INTEGER = r"^[+-]?[0-9]{16,}$"  # more digits than a float64 holds
_TRUTH = r"(?i)^(?:true|false)$"
_NO_VALUE = pa.array(["", "null", "none", "nan", "na", "n/a", "-nan"])
_HASHES = {32: "md5", 40: "sha1", 64: "sha256", 128: "sha512"}


def as_text(column: pa.Array) -> pa.Array:
    """Any scalar column as strings of valid UTF-8 (what is none is replaced by U+FFFD); whole numbers without `.0`."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    kind = column.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        column = column.cast(pa.large_binary())  # a file may hold what is not UTF-8 in a column that says it is
    if pa.types.is_large_binary(column.type) or pa.types.is_binary(kind) or pa.types.is_binary_view(kind):
        try:
            return column.cast(pa.string())
        except pa.ArrowInvalid:
            values = column.to_pylist()
            return pa.array([None if v is None else v.decode("utf-8", "replace") for v in values], pa.string())
    text = column.cast(pa.string())
    if pa.types.is_floating(kind):
        number = column.cast(pa.float64())
        whole = pc.and_(pc.equal(pc.floor(number), number), pc.less(pc.abs(number), 2.0**53))
        whole = pc.fill_null(whole, False)
        integers = pc.if_else(whole, number, pa.scalar(0.0)).cast(pa.int64()).cast(pa.string())
        text = pc.if_else(pc.is_nan(number), pa.scalar(None, pa.string()), pc.if_else(whole, integers, text))
    return text


def from_python(values: list[object]) -> pa.Array:
    """Values as JSON gives them, as strings; null for objects and lists."""
    try:
        return pa.array(values, pa.string())  # text and null alone, as nearly always
    except (pa.ArrowException, UnicodeEncodeError):
        pass
    texts = [
        value
        if isinstance(value, str)
        else ("true" if value else "false")
        if isinstance(value, bool)
        else str(value)
        if isinstance(value, int | float)
        else None
        for value in values
    ]
    try:
        return pa.array(texts, pa.string())
    except UnicodeEncodeError:  # half a surrogate pair, which UTF-8 has no form for
        return pa.array([None if text is None else clean_text(text) for text in texts], pa.string())


def clean_texts(texts: pa.Array) -> pa.Array:
    """`clean_text` of every string."""
    chosen = pc.fill_null(pc.match_substring_regex(texts, _UNTIDY), False)
    some = texts.filter(chosen)
    if not len(some):
        return texts
    return pc.replace_with_mask(texts, chosen, pa.array([clean_text(text) for text in some.to_pylist()], pa.string()))


def strip_signatures(urls: pa.Array) -> tuple[pa.Array, pa.Array]:
    """`strip_signature` of every string: the plain URLs, and the signed ones where they differ, else null."""
    chosen = pc.fill_null(may_hold_secret(urls), False)
    nothing = pa.nulls(len(urls), pa.string())
    some = [strip_signature(url) for url in urls.filter(chosen).to_pylist()]
    if not some:
        return urls, nothing
    plain, signed = (pa.array(column, pa.string()) for column in zip(*some, strict=True))
    return pc.replace_with_mask(urls, chosen, plain), pc.replace_with_mask(nothing, chosen, signed)


def or_null(texts: pa.Array) -> pa.Array:
    """The strings, null for empty ones."""
    return pc.if_else(pc.equal(texts, ""), pa.scalar(None, pa.string()), texts)


def hashes(texts: pa.Array) -> pa.Array:
    """Hex digests as `sha256:…`, `md5:…`, `sha1:…` or `sha512:…` by their length; null for what is none."""
    texts = pc.utf8_lower(pc.utf8_trim_whitespace(texts))
    found = pa.nulls(len(texts), pa.string())
    for digits, kind in _HASHES.items():
        digest = pc.replace_substring_regex(texts, f"^{kind}:", "")
        right = pc.fill_null(pc.match_substring_regex(digest, f"^[0-9a-f]{{{digits}}}$"), False)
        named = pc.binary_join_element_wise(pa.scalar(kind), digest, ":")
        found = pc.if_else(right, named, found)
    return found


def kind_of(column: pa.Array) -> pa.DataType:
    """The type that a signal of this column has: text and numbers as they are, dates and the like as text.

    Raises ValueError for lists and structs.
    """
    kind = column.type if isinstance(column, pa.Array | pa.ChunkedArray) else column
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_nested(kind):
        raise ValueError(f"{kind}, not text or numbers")
    if pa.types.is_uint64(kind) or pa.types.is_boolean(kind) or pa.types.is_float64(kind):
        return kind
    if pa.types.is_integer(kind):
        return pa.int64()
    if pa.types.is_floating(kind):
        return pa.float32()
    return pa.float64() if pa.types.is_decimal(kind) else pa.string()


def guess(texts: pa.Array) -> pa.DataType:
    """The type of a column of a text format by its first rows: float64, bool or string.

    Numbers are float64, also whole ones, since later rows may have fractions; ids too long for it stay text.
    """
    some = _values(texts).drop_null()
    if not len(some) or pc.any(pc.match_substring_regex(some, _LONG_INTEGER)).as_py():
        return pa.string()
    if pc.all(pc.match_substring_regex(some, _NUMBER)).as_py():
        return pa.float64()
    return pa.bool_() if pc.all(pc.match_substring_regex(some, _TRUTH)).as_py() else pa.string()


def as_type(column: pa.Array, kind: pa.DataType) -> tuple[pa.Array, int]:
    """A column as values of one of SIGNAL_TYPES, and how many did not fit and are null.

    No value is null and fits: the empty text, and among numbers NaN, `null` or `N/A`. URLs lose their signatures.
    """
    if kind == pa.string():
        return or_null(strip_signatures(clean_texts(as_text(column)))[0]), 0
    numeric = pa.types.is_integer(column.type) or pa.types.is_floating(column.type) or pa.types.is_boolean(column.type)
    if not numeric or pa.types.is_boolean(kind):
        texts = _values(as_text(column))
        pattern = _TRUTH if kind == pa.bool_() else _NUMBER if pa.types.is_floating(kind) else _INTEGER
        fits = pc.match_substring_regex(texts, pattern)
        fitting = pc.if_else(pc.fill_null(fits, False), texts, pa.scalar(None, pa.string()))
        if pa.types.is_integer(kind):
            fitting = pc.replace_substring_regex(fitting, r"^\+|\.0*$", "")
        column, asked = fitting, texts.null_count
    else:
        if pa.types.is_floating(column.type):
            column = pc.if_else(pc.is_nan(column), pa.scalar(None, column.type), column)
        asked = column.null_count
        if pa.types.is_floating(column.type) and pa.types.is_integer(kind):
            number = column.cast(pa.float64())
            whole = pc.and_(pc.equal(pc.floor(number), number), pc.less(pc.abs(number), 2.0**63))
            column = pc.if_else(whole, number, pa.scalar(None, pa.float64()))
    if kind == pa.uint64():
        column = pc.if_else(_not_negative(column), column, pa.scalar(None, column.type))
    elif kind == pa.int64() and column.type == pa.uint64():
        column = pc.if_else(pc.less(column, 2**63), column, pa.scalar(None, column.type))
    return column.cast(kind, safe=False), column.null_count - asked


def _not_negative(column: pa.Array) -> pa.Array:
    if pa.types.is_string(column.type):
        return pc.invert(pc.starts_with(column, "-"))
    return pc.greater_equal(column.cast(pa.float64(), safe=False), 0.0)


def _values(texts: pa.Array) -> pa.Array:
    texts = pc.utf8_trim_whitespace(texts)
    return pc.if_else(pc.is_in(pc.utf8_lower(texts), _NO_VALUE), pa.scalar(None, pa.string()), texts)
