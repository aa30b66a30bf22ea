"""What a caption's text says of itself: counts, repetition, boilerplate, whether it is a URL or a file's name,
profanity."""

from importlib.metadata import version

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vlmdata import recipe
from vlmdata.schemas import conform, table_schema
from vlmdata.signals.models import file_sha256, package_file
from vlmdata.signals.pictures import Pictures

VERSION = 3
IMAGES = False

_CHARACTERS = 5  # in a row, for repeated_chars
# What fastText's tokenizer splits at; every line break is a token of its own.
_NO_FASTTEXT_BREAK = r"[^ \t\n\v\f\r\x00]+"
_SPACE = r"\pZ\t-\r\x1c-\x1f\x{85}"  # in brackets: what str.split() splits at
# Neither letters, marks (which Indic scripts are full of), numbers nor white space.
_SPECIAL = rf"[^\pL\pM\pN{_SPACE}]"

# A scheme or `www.` and no white space; or a bare host and path (`example.org/a.jpg`), whose last label has two
# letters or more, so that `and/or` and `e.g./i.e.` are none.
_URL = r"(?i)^(?:[a-z][a-z0-9+.-]*://|www\.)\S+$|^[a-z0-9-]+(?:\.[a-z0-9-]+)*\.[a-z]{2,}/\S*$"

# One line that ends in an image's, film's or drawing's extension (in `.raw` and `.ai`, which are also words, without a
# space); or a name that a camera, phone or site makes, which has a space only behind `screen shot`: DSC01234,
# IMG_20190101_1234, IMG-20190101-WA0001, P1010123, Screenshot_2021-01-01, 1234_5678_9012_n, a long hex.
_FILE_NAME = (
    r"(?i)^[^/\\\r\n]{0,254}[^\s/\\.]\.(?:jpe?g|jpe|jfif|png|gif|webp|bmp|tiff?|svg|hei[cf]|avif|cr2|nef|dng|psd|eps"
    r"|pdf|mp4|mov|avi|webm)$"
    r"|(?i)^[^\s/\\]{0,254}[^\s/\\.]\.(?:raw|ai)$"
    r"|(?i)^_?(?:(?:dsc[nf]?|img|imgp|pict|pxl|mvimg|vid|gopr|dji|hpim|cimg|scan)[_-]?|(?:sam|p|wp|mov)_?"
    r"|screen[ _-]?shot[ _-]?)\d{3,}(?:[ _.()-]*(?:wa|at|copy|edited)?[ _.()-]*\d*)*$"
    r"|(?i)^\d+(?:_\d+){2,}(?:_[a-z])?$"
    r"|(?i)^[0-9a-f]{16,}$|(?i)^[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}$"
)

# What pages say of any image: how to use the page, who sells the picture, that there is none. A phrase stands between
# what is neither letter nor number.
_BOILERPLATE = (
    # English
    r"(?:image|photo|picture) may contain|image result for|(?:featured|default|placeholder) (?:image|photo)",
    r"(?:click|tap)(?: here| on)?(?: the)?(?: image| photo| picture| thumbnail)? (?:to|for)(?: a)? "
    r"(?:enlarge|zoom|view|see|open|full|larger?|bigger)",
    r"click (?:here|(?:on )?(?:the |this )?(?:image|photo|picture|thumbnail))",
    r"view (?:full[ -]?size|larger|full[ -]?screen)",
    r"(?:royalty[ -]free|stock) (?:photos?|photography|images?|pictures?|vectors?|illustrations?|footage)",
    r"no (?:image|photo|picture) available|(?:image|photo|picture) (?:is )?(?:not (?:available|found)|unavailable"
    r"|coming soon)",
    r"all rights reserved|(?:image|photo|picture) (?:credits?|courtesy)|getty images|shutterstock|dreamstime",
    r"add to (?:cart|basket|wish ?list)|pin (?:it|this) for later|share on (?:facebook|twitter|pinterest)",
    r"free (?:download|shipping|delivery)",
    # German
    r"(?:bild|foto|grafik) (?:an)?klicken|klicken sie|(?:zum|bild|foto) vergrößern|hier klicken|klick(?:en)? zum",
    r"kein (?:bild|foto)(?: vorhanden| verfügbar)?|symbolbild|bildquelle|alle rechte vorbehalten",
    r"lizenzfreies? (?:fotos?|bild(?:er)?)",
    # French
    r"cliquez (?:ici|pour|sur)|agrandir l['’](?:image|photo)|l['’]image (?:peut contenir|n['’]est pas disponible)",
    r"photos? libres? de droits?|image non disponible|aucune image|tous droits réservés|crédits? photos?",
    # Spanish, Portuguese, Italian
    r"clic (?:para|aquí|en la imagen)|ampliar (?:la )?imagen|imagen no disponible|todos los derechos reservados",
    r"clique (?:para|aqui|na imagem)|imagem (?:não disponível|indisponível)|todos os direitos reservados",
    r"clicca (?:per|qui)|ingrandisci l['’]immagine|immagine non disponibile|tutti i diritti riservati",
    # Dutch, Polish, Russian
    r"klik (?:hier|om te|op de)|afbeelding (?:vergroten|niet beschikbaar)|geen afbeelding",
    r"kliknij|brak zdjęcia|wszelkie prawa zastrzeżone",
    r"нажмите|увеличить (?:изображение|фото)|нет (?:фото|изображения)|стоковое фото|все права защищены",
)
# Words that are boilerplate where nothing else stands there.
_BOILERPLATE_ALONE = (
    r"\W*(?:(?:untitled|no|missing) ?)?(?:image|photo|picture|thumbnail|untitled|loading|logo|icon|banner)\W*"
)
# CJK writes no spaces: there a phrase may stand anywhere.
_BOILERPLATE_CJK = (
    "点击(?:查看|放大|图片)|查看大图|暂无图片|图片(?:加载|来源)|クリック(?:で|して|すると)|画像はありません|이미지 없음"
)
_ANY_BOILERPLATE = (
    rf"(?i)(?:^|[^\pL\pM\pN])(?:{'|'.join(_BOILERPLATE)})(?:$|[^\pL\pM\pN])|^{_BOILERPLATE_ALONE}$|{_BOILERPLATE_CJK}"
)


def schemas(options: recipe.TextSignal) -> dict[str, pa.Schema]:
    """The tables that `measure` gives."""
    return {"text": table_schema("text")}


def identity(options: recipe.TextSignal) -> dict[str, str]:
    """sha256 of the files of the profanity model, and the versions of what runs it."""
    names = ("model.joblib", "vectorizer.joblib")
    files = {f"profanity_check/{n}": file_sha256(package_file("profanity_check", "data", n)) for n in names}
    return files | {name: version(name) for name in ("alt-profanity-check", "scikit-learn")}


def measure(rows: pa.Table, images: Pictures | None, options: recipe.TextSignal) -> dict[str, pa.Table]:
    """The `text` table of some rows; reads the columns uid and caption.

    chars: Unicode characters. words: what str.split() gives. Both are what DataComp's basic filter counts.
    fasttext_tokens: what fastText's tokenizer gives, by which DataComp's image-based filter counts: stretches without
    space, tab, CR, VT, FF and NUL (not Unicode's other spaces), and one token more for every line feed.
    repeated_words, repeated_word_pairs, repeated_chars: share of the caption's words, of its pairs of neighbouring
    words and of its runs of 5 characters, that stood before in it, without regard to case; 0 to 1, 0 where there are
    none.
    (Gopher, Rae et al. 2021, and ROOTS, Laurençon et al. 2022, look at longer n-grams, of documents.)
    special_chars: share of the characters that are no letter, mark, number or white space; 0 to 1.
    boilerplate: one of some hundred phrases of this module, in ten languages, stands in it.
    profanity: by alt-profanity-check's linear model (https://github.com/dimitrismistriotis/alt-profanity-check).
    All are null for a null caption.
    """
    caption = pa.chunked_array(rows["caption"]).combine_chunks()
    trimmed = pc.utf8_trim_whitespace(caption)
    lower = pc.utf8_lower(caption)
    chars = pc.utf8_length(caption)
    words, of_words = _words(lower)
    tokens = pc.add(pc.count_substring_regex(caption, _NO_FASTTEXT_BREAK), pc.count_substring(caption, "\n"))
    special = pc.divide(
        pc.cast(pc.count_substring_regex(caption, _SPECIAL), pa.float64()), pc.max_element_wise(chars, 1)
    )
    absent = caption.is_null().to_numpy(zero_copy_only=False)

    def repeated(items: np.ndarray, rows_of: np.ndarray, n: int) -> pa.Array:
        return pa.array(repeated_ngrams(items, rows_of, n, len(caption)), mask=absent)

    columns = {
        "uid": rows["uid"],
        "chars": chars,
        "words": pa.array(np.bincount(of_words, minlength=len(caption)), pa.int32(), mask=absent),
        "fasttext_tokens": tokens,
        "repeated_words": repeated(words, of_words, 1),
        "repeated_word_pairs": repeated(words, of_words, 2),
        "repeated_chars": repeated(*_characters(lower), _CHARACTERS),
        "special_chars": pc.if_else(caption.is_null(), None, special).cast(pa.float32()),
        "caption_is_url": pc.match_substring_regex(trimmed, _URL),
        "caption_is_file_name": pc.match_substring_regex(trimmed, _FILE_NAME),
        "boilerplate": pc.match_substring_regex(caption, _ANY_BOILERPLATE),
        "profanity": _profanity(caption),
    }
    return {"text": conform(pa.table(columns), table_schema("text"))}


def repeated_ngrams(items: np.ndarray, rows: np.ndarray, n: int, count: int) -> np.ndarray:
    """float32 [count]: 1 - different n-grams / n-grams of each row, 0 for rows shorter than n.

    items, rows: integers [m], the rows' items (words, characters) one after the other and the row of each, rising.
    """
    starts = np.flatnonzero(rows[: max(len(rows) - n + 1, 0)] == rows[n - 1 :])
    if not len(starts):
        return np.zeros(count, np.float32)
    # n-grams are compared by a hash of 64 bits with the row in it; a million of them have a collision once in 10**7.
    odd = np.uint64(0xBF58476D1CE4E5B9)
    key = (rows[starts].astype(np.uint64) + np.uint64(1)) * odd
    for place in range(n):
        key = (key ^ (key >> np.uint64(29)) ^ items[starts + place].astype(np.uint64)) * odd
    _, first = np.unique(key, return_index=True)
    total, different = (np.bincount(of, minlength=count) for of in (rows[starts], rows[starts[first]]))
    return (1 - different / np.maximum(total, 1)).astype(np.float32) * (total > 0)


def _words(lower: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Every word as a number that equal words share, and its row."""
    # Arrow's own split at white space makes words of some trailing spaces beyond ASCII
    split = pc.split_pattern(pc.replace_substring_regex(lower, rf"[{_SPACE}]+", " "), " ")
    words, rows = pc.list_flatten(split), pc.list_parent_indices(split)
    there = pc.not_equal(words, "")  # the split leaves an empty one before leading and after trailing white space
    return pc.dictionary_encode(words.filter(there)).indices.to_numpy(), rows.filter(there).to_numpy()


def _characters(lower: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Every character's code point, and its row."""
    text = pc.fill_null(lower, "")
    together = pc.binary_join(pa.ListArray.from_arrays([0, len(text)], text), "")[0].as_py()
    rows = np.repeat(np.arange(len(text)), pc.utf8_length(text).to_numpy())
    return np.frombuffer(together.encode("utf-32-le"), np.uint32), rows


def _profanity(caption: pa.Array) -> pa.Array:
    """float32 probabilities, null for null."""
    if not len(caption):
        return pa.array([], pa.float32())
    from profanity_check import predict_prob  # loads scikit-learn: seconds

    scores = predict_prob(caption.fill_null("").to_pylist())
    return pa.array(scores.astype(np.float32), mask=caption.is_null().to_numpy(zero_copy_only=False))
