"""WordNet's database files (wndb(5WN)): the first sense of a word, and all names that it has for things.

The folder is the one with `index.noun`, `data.noun`, `noun.exc` and so on, as Princeton's release and Debian's package
wordnet-base have it.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from vlmdata.errors import InputError
from vlmdata.signals.models import digest, file_sha256, loaded_once, package_file

POS = ("noun", "verb", "adj", "adv")
# wnids of ImageNet-21k as its first models listed them: 21,843 lines, the two that later lists lack among them.
_IMAGENET = ("timm", "data", "_info", "imagenet21k_goog_synsets.txt")

_LONGEST = 255  # WordNet's longest name has 71 letters; a longer word is no word, and its endings could go on for ever
# A word's ending and what stands in its place in the base form; tried in this order (morphy(7WN)).
_ENDINGS = {
    "noun": (("s", ""), ("ses", "s"), ("ves", "f"), ("xes", "x"), ("zes", "z"), ("ches", "ch"), ("shes", "sh"),
             ("men", "man"), ("ies", "y")),
    "verb": (("s", ""), ("ies", "y"), ("es", "e"), ("es", ""), ("ed", "e"), ("ed", ""), ("ing", "e"), ("ing", "")),
    "adj": (("er", ""), ("est", ""), ("er", "e"), ("est", "e")),
    "adv": (),
}  # fmt: skip


class WordNet:
    """The index and the irregular forms of one folder, in memory (about 50 MB)."""

    def __init__(self, folder: str) -> None:
        self.first = {pos: dict(_index(folder, pos)) for pos in POS}
        self.irregular = {pos: dict(_exceptions(folder, pos)) for pos in POS}

    def first_offset(self, word: str) -> int | None:
        """The offset of the word's first sense, None where WordNet has none: nouns first, then verbs, adjectives and
        adverbs; in each the word itself, then its base forms; without regard to case. What NLTK 3.8.1, which DataComp
        asks for, calls `synsets(word)[0].offset()`; words of more than _LONGEST letters have no sense here."""
        word = word.lower()
        if len(word) > _LONGEST:
            return None
        for pos in POS:
            index = self.first[pos]
            for form in self._forms(word, pos):
                if form in index:
                    return index[form]
        return None

    def _forms(self, word: str, pos: str) -> Iterator[str]:
        """The word, then what is left of it without one ending, two, and so on: `womens`, `women`, `woman`."""
        yield word
        if word in self.irregular[pos]:
            yield from self.irregular[pos][word]
            return
        forms = [word]
        while forms:
            bases = [f[: -len(end)] + base for f in forms for end, base in _ENDINGS[pos] if f.endswith(end)]
            forms = list(dict.fromkeys(bases))
            yield from forms


def files(folder: str) -> dict[str, str]:
    """sha256 of the files that `WordNet` reads. Raises InputError where the folder is not WordNet's."""
    return _sha256(folder, [f"index.{pos}" for pos in POS] + [f"{pos}.exc" for pos in POS])


def name_files(folder: str) -> dict[str, str]:
    """sha256 of the files that `names` reads. Raises InputError where one is not there."""
    return _sha256(folder, [f"data.{pos}" for pos in POS])


def opened(folder: str) -> WordNet:
    """The database of a folder, read once a process while its files stay the same. Raises InputError as `files`."""
    return _opened(folder, digest(files(folder)))


@loaded_once
def _opened(folder: str, _files: str) -> WordNet:
    return WordNet(folder)


def names(folder: str) -> list[str]:
    """Every name of every sense, once, in the order of the data files: `hot dog` with a space, capitals as there."""
    found: dict[str, None] = {}
    for pos in POS:
        for line in _lines(folder, f"data.{pos}"):
            words = line.split(" ")
            count = int(words[3], 16)
            for word in words[4 : 4 + 2 * count : 2]:
                found.setdefault(re.sub(r"\([a-z]+\)$", "", word).replace("_", " "))  # galore(ip): its place
    return list(found)


def imagenet21k() -> frozenset[int]:
    """The offsets (in WordNet 3.0) of ImageNet-21k's classes, from the list that timm carries."""
    return frozenset(int(wnid[1:]) for wnid in package_file(*_IMAGENET).read_text().split())


def imagenet21k_sha256() -> str:
    """sha256 of that list."""
    return file_sha256(package_file(*_IMAGENET))


def _sha256(folder: str, names: list[str]) -> dict[str, str]:
    return {name: file_sha256(_file(folder, name)) for name in names}


def _index(folder: str, pos: str) -> Iterator[tuple[str, int]]:
    """(lemma, offset of its first sense)."""
    for line in _lines(folder, f"index.{pos}"):
        words = line.split()
        senses = int(words[2])
        yield words[0], int(words[-senses])


def _exceptions(folder: str, pos: str) -> Iterator[tuple[str, list[str]]]:
    """(irregular form, its base forms)."""
    for line in _lines(folder, f"{pos}.exc"):
        form, *bases = line.split()
        yield form, bases


def _lines(folder: str, name: str) -> Iterator[str]:
    path = _file(folder, name)
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if line.startswith(" ") or not line.strip():  # the licence
                continue
            if len(line.split()) < 2:
                raise InputError(f"{path}:{number}: not a line of WordNet's database")
            yield line


def _file(folder: str, name: str) -> Path:
    path = Path(folder, name)
    if not path.is_file():
        raise InputError(
            f"{path}: WordNet's database is not there: install Debian's package wordnet-base, "
            "or name the folder with index.noun, data.noun, noun.exc and the like by `path` (the signal) or `wordnet` "
            "(select.balance)"
        )
    return path
