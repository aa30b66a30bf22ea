"""The first sense of a word, from the database's files."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_wordnet import IRREGULAR, SENSES, senses, write

from vlmdata import wordnet
from vlmdata.errors import InputError


@pytest.mark.parametrize(
    ("word", "offset"),
    [
        ("dog", 2084071),  # the first of its senses, and the noun before the verb
        ("DOGS", 2084071),
        ("domestic_dog", 2084071),
        ("mice", 2355227),  # irregular
        ("leaves", 1700000),  # irregular: no such noun; the verb by its ending
        ("womens", 10787470),  # two endings
        ("dogss", 2084071),
        ("dogs" * 63 + "dog", None),
        ("s" * 1_000_000, None),
        ("running", 5600000),  # the word itself before its base form
        ("ran", 1926311),
        ("chased", 2084072),
        ("bigger", 1382086),
        ("galore", 980527),
        ("well", 11093),
        ("dog.", None),  # nothing is cut off
        ("", None),
        ("s", None),
    ],
)
def test_first_sense(tmp_path, word, offset):
    assert wordnet.WordNet(write(tmp_path / "wordnet")).first_offset(word) == offset


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write(tmp_path_factory.mktemp("made") / "wordnet")


STEMS = [name for pos in SENSES.values() for names in pos.values() for name in names]
STEMS += [word for lines in IRREGULAR.values() for line in lines for word in line.split()]
STEMS += ["", "chas", "wo", "leav", "BI", "lea", "run"]
ENDINGS = ["s", "es", "ses", "ves", "xes", "ches", "men", "ies", "ed", "ing", "er", "est", "e", "g", "n", ""]


@settings(max_examples=500, deadline=None)
@given(st.sampled_from(STEMS), st.lists(st.sampled_from(ENDINGS), max_size=4))
def test_first_senses_are_those_of_nltks_definition(folder, stem, endings):
    word = stem + "".join(endings)
    assert wordnet.opened(folder).first_offset(word) == next(iter(senses(folder)(word)), None)


def test_names_have_spaces_and_capitals_and_no_marks(tmp_path):
    names = wordnet.names(write(tmp_path / "wordnet"))
    assert names[:4] == ["dog", "domestic dog", "hot dog", "mouse"]
    assert {"Rome", "galore"} <= set(names)
    assert len(names) == len(set(names)) == 16


def test_what_is_no_database_is_named(tmp_path):
    with pytest.raises(InputError, match=r"index\.noun: WordNet's database is not there.*wordnet-base"):
        wordnet.files(str(tmp_path))
    folder = write(tmp_path / "wordnet")
    (tmp_path / "wordnet" / "index.noun").write_text("dog\n")
    with pytest.raises(InputError, match=r"index\.noun:1: not a line"):
        wordnet.WordNet(folder)


def test_imagenets_classes_are_those_of_its_first_models():
    classes = wordnet.imagenet21k()
    assert len(classes) == 21_843
    assert {2084071, 4475, 15102894} <= classes
