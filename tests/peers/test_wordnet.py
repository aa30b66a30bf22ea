"""The first sense of a word beside NLTK 3.8.1's (DataComp's version), on Debian's WordNet 3.0. `make test-peers` runs
this."""

import importlib.util
import random
from pathlib import Path

import pytest
from peer import PEERS  # noqa: F401 - puts NLTK on the path

from vlmdata import wordnet

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The package's database, laid out as NLTK looks for it."""
    spec = importlib.util.spec_from_file_location("demo_data", ROOT / "recipes" / "demo_data.py")
    demo = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(demo)
    folder = tmp_path_factory.mktemp("nltk_data") / "corpora" / "wordnet"
    folder.mkdir(parents=True)
    packages = ROOT / ".cache" / "peers" / "packages"
    packages.mkdir(exist_ok=True)
    for name, read in demo._members(demo.debian("wordnet-base", packages)):
        if name.startswith("usr/share/wordnet/"):
            (folder / Path(name).name).write_bytes(read())
    # NLTK reads the lexicographers' names, which Debian leaves out and no answer here depends on
    (folder / "lexnames").write_text("".join(f"{n:02d}\tname{n}\t1\n" for n in range(45)))
    return folder


@pytest.mark.filterwarnings("ignore:The multilingual functions")
def test_first_senses_and_names_are_nltks(folder, monkeypatch):
    monkeypatch.setenv("NLTK_DATA", str(folder.parents[1]))
    import nltk
    from nltk.corpus.reader.wordnet import WordNetCorpusReader

    nltk.data.path.insert(0, str(folder.parents[1]))
    theirs = WordNetCorpusReader(str(folder), None)
    ours = wordnet.opened(str(folder))
    known = sorted({word for pos in wordnet.POS for word in [*ours.first[pos], *ours.irregular[pos]]})
    draw = random.Random(0)
    words = [*draw.sample(known, 40_000), "", "s", "İ", "ß", "photo.", "dog's"]
    words += [*(word + "s" for word in words[:4_000] if word.endswith(("s", "men"))), "womens", "dogss", "seseses"]
    words += [word + ending for word in words[:8_000] for ending in ("s", "es", "ing", "ed", "er", "est", "men")]
    for word in words:
        senses = theirs.synsets(word)
        assert ours.first_offset(word) == (senses[0].offset() if senses else None), word
    assert set(wordnet.names(str(folder))) == {
        name.replace("_", " ") for sense in theirs.all_synsets() for name in sense.lemma_names()
    }
    nouns = {int(line[:8]) for line in (folder / "data.noun").read_text().splitlines() if line[0] != " "}
    assert wordnet.imagenet21k() <= nouns
