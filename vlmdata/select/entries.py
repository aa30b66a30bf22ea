"""The entries of balancing: from files, from WordNet, and from the pool's own frequent words and bigrams.

MetaCLIP's list is made of WordNet's synsets, words, bigrams and titles of Wikipedia (Xu et al. 2023, "Demystifying CLIP
Data", section 3.1). Here words and bigrams are those of the pool: of the captions that come to the balancing.
"""

import unicodedata
from collections.abc import Iterable
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vlmdata import wordnet
from vlmdata.errors import DataError, InputError
from vlmdata.recipe import Balance
from vlmdata.signals.models import file_sha256

GRAMS = pa.schema([("gram", pa.string()), ("words", pa.int8()), ("count", pa.int64())])
MADE = ("wordnet", "unigrams", "bigrams")


def normalise(texts: pa.Array | pa.ChunkedArray) -> pa.Array:
    """What is compared, of entries and captions alike: NFKC, lower case, the words (runs of letters, marks and digits)
    with one blank between them and one at either end, so that only whole words match. A text without a word is ' '."""
    # Not Arrow's utf8_normalize, whose NFC leaves what is decomposed as it is.
    composed = [unicodedata.normalize("NFKC", text) for text in texts.to_pylist()]
    lower = pc.utf8_lower(pa.array(composed, pa.string()))
    return pc.replace_substring_regex(pc.binary_join_element_wise(" ", lower, " ", ""), r"[^\p{L}\p{M}\p{N}]+", " ")


def tidy(entries: Iterable[str]) -> list[str]:
    """Entries normalised, without their outer blanks; each once, in the order of their UTF-8 bytes."""
    texts = normalise(pa.array(entries, pa.string()))
    return sorted({text.strip(" ") for text in texts.to_pylist()} - {""}, key=str.encode)


def read_file(path: str) -> list[str]:
    """The entries of a text file, UTF-8, one a line. Raises InputError where it cannot be read or holds none."""
    try:
        lines = Path(path).read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        said = error.strerror if isinstance(error, OSError) else error
        raise InputError(
            f"select.balance.entries: {path}: {said}; it should be a text file, an entry a line"
        ) from error
    found = [line for line in lines if line.strip()]
    if not found:
        raise InputError(f"select.balance.entries: {path} holds no entry")
    return found


def count_grams(captions: pa.Array) -> pa.Table:
    """The words and the pairs of neighbouring words of normalised captions with how often each stands in them: GRAMS,
    `words` 1 or 2, in the order of (words, gram)."""
    lists = pc.split_pattern(pc.utf8_trim(captions, " "), " ")
    words, parents = lists.flatten(), np.asarray(pc.list_parent_indices(lists))
    some = pc.not_equal(words, "")
    words, parents = words.filter(some), parents[np.asarray(some)]
    pairs = pc.binary_join_element_wise(words[:-1], words[1:], " ").filter(pa.array(parents[:-1] == parents[1:]))
    tables = []
    for size, grams in ((1, words), (2, pairs)):
        counted = pc.value_counts(grams)
        rows = [counted.field("values"), pa.array([size] * len(counted), pa.int8()), counted.field("counts")]
        tables.append(pa.Table.from_arrays(rows, schema=GRAMS).sort_by("gram"))
    return pa.concat_tables(tables)


def bucket_of(grams: pa.Table, buckets: int) -> np.ndarray:
    """int64 [grams]: the bucket of each of GRAMS, by a hash of its text."""
    with duckdb.connect(config={"threads": 1}) as connection:
        connection.register("grams", grams)
        found = connection.execute("SELECT (hash(gram) % $n)::BIGINT AS bucket FROM grams", {"n": buckets})
        return np.asarray(found.fetchnumpy()["bucket"], np.int64)


def add_up(
    connection: duckdb.DuckDBPyConnection, grams: pa.RecordBatchReader, least: int
) -> tuple[pa.Table, dict[int, int]]:
    """Of several parts' GRAMS, those that stand `least` times in all of them, with how often, in the order of (words,
    gram); and how many words (1) and bigrams (2) there are at all. DuckDB spills what is more than it may hold."""
    connection.register("grams", grams)
    connection.execute("CREATE TEMP TABLE whole AS SELECT gram, words, sum(count) AS count FROM grams GROUP BY ALL")
    totals = dict(connection.execute("SELECT words, sum(count)::BIGINT FROM whole GROUP BY words").fetchall())
    some = connection.sql("SELECT * FROM whole WHERE count >= $least ORDER BY words, gram", params={"least": least})
    return some.to_arrow_table().cast(GRAMS), totals


def frequent(connection: duckdb.DuckDBPyConnection, totals: dict[int, int], options: Balance) -> list[str]:
    """The pool's entries, of the kinds that the recipe asks for.

    connection: has as the view `grams` GRAMS of the pool, and totals what `add_up` gives, for `min_count`. A bigram is
    an entry where it has `min_pmi` bits of pointwise mutual information, log2(p(xy) / (p(x) p(y))) (Church and Hanks
    1990, "Word Association Norms, Mutual Information, and Lexicography"). DuckDB spills, so memory does not grow with
    the pool.
    """
    found: list[str] = []
    if "unigrams" in options.entries:
        found += [row[0] for row in connection.execute("SELECT gram FROM grams WHERE words = 1").fetchall()]
    if "bigrams" in options.entries:
        # A bigram that is frequent enough has words that are.
        rows = connection.execute(
            """
            SELECT b.gram FROM grams b JOIN grams x ON x.words = 1 AND x.gram = split_part(b.gram, ' ', 1)
            JOIN grams y ON y.words = 1 AND y.gram = split_part(b.gram, ' ', 2)
            WHERE b.words = 2 AND log2((b.count / $pairs) / ((x.count / $words) * (y.count / $words))) >= $least""",
            {"pairs": float(totals.get(2, 1)), "words": float(totals.get(1, 1)), "least": options.min_pmi},
        ).fetchall()
        found += [row[0] for row in rows]
    return found


def listed(options: Balance) -> list[str]:
    """The entries that do not depend on the pool: of files, and WordNet's."""
    found: list[str] = []
    for entry in options.entries:
        if entry == "wordnet":
            found += wordnet.names(options.wordnet)
        elif entry not in MADE:
            found += read_file(entry)
    return found


def identity(options: Balance) -> list[str]:
    """What the list hangs on beside the options and the pool: sha256 of WordNet's files and of the recipe's.

    Raises InputError where one is not there.
    """
    hashes: list[str] = []
    for entry in options.entries:
        if entry == "wordnet":
            hashes += wordnet.name_files(options.wordnet).values()
        elif entry not in MADE:
            read_file(entry)
            hashes.append(file_sha256(Path(entry)))
    return hashes


def united(options: Balance, pool: list[str]) -> list[str]:
    """The whole list, tidied. Raises DataError where nothing is in it, which would reject every pair."""
    entries = tidy([*listed(options), *pool])
    if not entries:
        raise DataError(
            f"select.balance: no word of the pool stands {options.min_count} times in its captions, so there is no "
            "entry: lower select.balance.min_count, or name a file or `wordnet` in its entries"
        )
    return entries
