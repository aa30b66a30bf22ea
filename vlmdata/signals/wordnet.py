"""Whether a caption speaks of what is among ImageNet-21k's classes, as DataComp's text-based filter asks.

Gadre et al. 2023, "DataComp: In search of the next generation of multimodal datasets", section on its baselines.
"""

from pathlib import Path

import pyarrow as pa

from vlmdata import recipe, wordnet
from vlmdata.errors import InputError
from vlmdata.schemas import conform, table_schema
from vlmdata.signals.models import loaded_once
from vlmdata.signals.pictures import Pictures

VERSION = 2
IMAGES = False


def schemas(options: recipe.WordnetSignal) -> dict[str, pa.Schema]:
    """The tables that `measure` gives."""
    return {"wordnet": table_schema("wordnet")}


def identity(options: recipe.WordnetSignal) -> dict[str, str]:
    """sha256 of the database's files and of the list of classes. Raises InputError where the database is not there."""
    return {**wordnet.files(options.path), "imagenet21k": wordnet.imagenet21k_sha256()}


def absolute(options: recipe.WordnetSignal) -> recipe.WordnetSignal:
    """The same database, by a path that a worker finds from another working folder."""
    return options.model_copy(update={"path": str(Path(options.path).resolve())})


def measure(rows: pa.Table, images: Pictures | None, options: recipe.WordnetSignal) -> dict[str, pa.Table]:
    """The `wordnet` table of some rows; reads the columns uid and caption.

    imagenet_words: whether for any word (what str.split() gives, punctuation and all) the offset of its first sense in
    WordNet 3.0 is the number of one of ImageNet-21k's classes. Only the number counts, as in DataComp: a verb's sense
    at a class's offset counts too. Null for a null caption.
    Raises InputError where the database is not WordNet 3.0.
    """
    captions = pa.chunked_array(rows["caption"]).combine_chunks().to_pylist()
    words = [None if caption is None else set(caption.split()) for caption in captions]
    database = wordnet.opened(options.path)
    classes = _classes(options.path, database)
    telling = {word for word in set().union(*filter(None, words)) if database.first_offset(word) in classes}
    value = [None if own is None else not telling.isdisjoint(own) for own in words]
    columns = {"uid": rows["uid"], "imagenet_words": pa.array(value, pa.bool_())}
    return {"wordnet": conform(pa.table(columns), table_schema("wordnet"))}


@loaded_once
def _classes(folder: str, database: wordnet.WordNet) -> frozenset[int]:
    classes = wordnet.imagenet21k()
    missing = len(classes - set(database.first["noun"].values()))
    # in WordNet 3.0 most classes are the first sense of one of their names; in any other version hardly an offset is
    if missing > len(classes) // 2:
        raise InputError(f"{folder}: not WordNet 3.0, whose offsets are the numbers of ImageNet's classes")
    return classes
