"""All signals of a part, and the stage that measures parts: what is measured again, what is taken over."""

from pathlib import Path
from typing import Any

import made_dataset
import pytest

from vlmdata import snapshot
from vlmdata.dataset import Dataset

RULES = {"w": "words > 1", "v": "words > 2"}
OWN = """import vlmdata


@vlmdata.signal(columns={{"{column}": "{kind}"}}, reads={reads})
def own(rows):
    return {{"{column}": {value}}}
"""


def published(folder: Path, signals: list[Any], shift: int = 0, **changes: Any) -> tuple[Dataset, dict[str, Any]]:
    made = [
        made_dataset.pair(f"a photograph of the house number {n}", made_dataset.picture(n + shift)) for n in range(4)
    ]
    recipe = {"signals": signals, "dedup": [], "select": {"rules": RULES}, **changes}
    return made_dataset.publish(folder, made, recipe)


def column(dataset: Dataset, manifest: dict[str, Any], name: str) -> list[Any]:
    (samples,) = (dataset.read_part(part["path"]) for part in manifest["samples"])
    return samples[name].to_pylist()


def test_images_stored_otherwise_leave_what_the_caption_alone_says_in_place(tmp_path: Path) -> None:
    signals = ["text", "language", {"kind": "pii", "after": ["w"]}, {"kind": "image", "after": ["w"]}]
    dataset, first = published(tmp_path, signals)
    kept = [Path(dataset.path(part["path"])) for name in ("text", "language", "pii")
            for part in first["tables"][name]["parts"]]  # fmt: skip
    before = [(path.stat().st_ino, path.read_bytes()) for path in kept]
    _, second = published(tmp_path, signals, download={"size": 300})
    assert [(path.stat().st_ino, path.read_bytes()) for path in kept] == before
    assert [first["tables"][n]["key"] == second["tables"][n]["key"] for n in ("text", "pii", "image")] == [1, 1, 0]
    assert not list(snapshot.verify(dataset))


def test_a_rule_on_an_images_size_makes_the_key_depend_on_the_images(tmp_path: Path) -> None:
    signals, select = [{"kind": "text", "after": ["large"]}], {"rules": {"large": "width > 10"}}
    keys = [published(tmp_path, signals, select=select, download={"size": size})[1]["tables"]["text"]["key"]
            for size in (300, 400)]  # fmt: skip
    assert keys[0] != keys[1]


def test_values_of_other_pixels_are_not_taken_over_under_other_rules(tmp_path: Path) -> None:
    def hashes(folder: Path, shift: int, after: str) -> list[str]:
        return column(*published(folder, ["text", {"kind": "image", "after": [after]}], shift), "pixels_sha256")

    hashes(tmp_path, 0, "w")
    hashes(tmp_path, 0, "v")
    (tmp_path / "fresh").mkdir()
    assert hashes(tmp_path, 100, "w") == hashes(tmp_path / "fresh", 100, "w")


def test_the_users_signal_gets_what_it_declares_and_follows_its_changes(tmp_path: Path) -> None:
    def write(factor: int) -> None:
        value = f'[{factor} * n for n in rows["words"].to_pylist()]'
        (tmp_path / "a.py").write_text(OWN.format(column="a", kind="int32", reads=["words"], value=value))

    value = '[f"{n} {list(rows.column_names)}" for n in rows["a_a"].to_pylist()]'
    (tmp_path / "b.py").write_text(OWN.format(column="b", kind="string", reads=["a_a", "original_width"], value=value))
    # what is read stands behind what reads it
    signals = [{"kind": "python", "name": name, "path": str(tmp_path / f"{name}.py")} for name in ("b", "a")]
    found = []
    for factor in (1, 2):
        write(factor)
        found += [column(*published(tmp_path, [*signals, "text"]), "b_b")[0]]
    assert found == [f"{n} ['uid', 'caption', 'a_a', 'original_width']" for n in (7, 14)]
    keys = [published(tmp_path, [*signals, "text"], download={"size": n})[1]["tables"] for n in (300, 400)]
    assert [keys[0][f"python_{n}"]["key"] == keys[1][f"python_{n}"]["key"] for n in "ab"] == [True, False]


def test_a_column_that_nothing_makes_is_refused_before_anything_runs(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text(OWN.format(column="a", kind="int32", reads=["wrods"], value="[]"))
    signals = ["text", {"kind": "python", "path": str(tmp_path / "a.py")}]
    with pytest.raises(Exception, match="no column 'wrods' to read; did you mean 'words'"):
        published(tmp_path, signals)
