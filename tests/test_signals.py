"""All signals of a part, and the stage that measures parts: what is measured again, what is taken over."""

from pathlib import Path
from typing import Any

import made_dataset
import pyarrow as pa
import pytest
import simplejpeg

from vlmdata import signals, snapshot
from vlmdata.dataset import Dataset
from vlmdata.errors import DataError
from vlmdata.recipe import ImageSignal, OcrSignal, TextSignal
from vlmdata.rules import Expression
from vlmdata.signals import image, ocr, text

RULES = {"w": "words > 1", "v": "words > 2"}
OWN = """import vlmdata


@vlmdata.signal(columns={{"{column}": "{kind}"}}, reads={reads})
def own(rows):
    return {{"{column}": {value}}}
"""


def published(folder: Path, wanted: list[Any], shift: int = 0, **changes: Any) -> tuple[Dataset, dict[str, Any]]:
    made = [
        made_dataset.pair(f"a photograph of the house number {n}", made_dataset.picture(n + shift)) for n in range(4)
    ]
    recipe = {"signals": wanted, "dedup": [], "select": {"rules": RULES}, **changes}
    return made_dataset.publish(folder, made, recipe)


def column(dataset: Dataset, manifest: dict[str, Any], name: str) -> list[Any]:
    (samples,) = (dataset.read_part(part["path"]) for part in manifest["samples"])
    return samples[name].to_pylist()


def test_images_stored_otherwise_leave_what_the_caption_alone_says_in_place(tmp_path: Path) -> None:
    wanted = ["text", "language", {"kind": "pii", "after": ["w"]}, {"kind": "image", "after": ["w"]}]
    dataset, first = published(tmp_path, wanted)
    kept = [Path(dataset.path(part["path"])) for name in ("text", "language", "pii")
            for part in first["tables"][name]["parts"]]  # fmt: skip
    before = [(path.stat().st_ino, path.read_bytes()) for path in kept]
    _, second = published(tmp_path, wanted, download={"size": 300})
    assert [(path.stat().st_ino, path.read_bytes()) for path in kept] == before
    assert [first["tables"][n]["key"] == second["tables"][n]["key"] for n in ("text", "pii", "image")] == [1, 1, 0]
    assert not list(snapshot.verify(dataset))


def test_a_rule_on_an_images_size_makes_the_key_depend_on_the_images(tmp_path: Path) -> None:
    wanted, select = [{"kind": "text", "after": ["large"]}], {"rules": {"large": "width > 10"}}
    keys = [published(tmp_path, wanted, select=select, download={"size": size})[1]["tables"]["text"]["key"]
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
    wanted = [{"kind": "python", "name": name, "path": str(tmp_path / f"{name}.py")} for name in ("b", "a")]
    found = []
    for factor in (1, 2):
        write(factor)
        found += [column(*published(tmp_path, [*wanted, "text"]), "b_b")[0]]
    assert found == [f"{n} ['uid', 'caption', 'a_a', 'original_width']" for n in (7, 14)]
    keys = [published(tmp_path, [*wanted, "text"], download={"size": n})[1]["tables"] for n in (300, 400)]
    assert [keys[0][f"python_{n}"]["key"] == keys[1][f"python_{n}"]["key"] for n in "ab"] == [True, False]


def test_a_column_that_nothing_makes_is_refused_before_anything_runs(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text(OWN.format(column="a", kind="int32", reads=["wrods"], value="[]"))
    wanted = ["text", {"kind": "python", "path": str(tmp_path / "a.py")}]
    with pytest.raises(Exception, match="no column 'wrods' to read; did you mean 'words'"):
        published(tmp_path, wanted)


LONG = {"long": Expression("chars > 10", ("chars",))}


class Part:
    """Rows of a part by hand: (caption, number of a picture or None); counts what is decoded and measured."""

    def __init__(self, rows: list[tuple[str, int | None]], monkeypatch: pytest.MonkeyPatch) -> None:
        self.stored = {n: made_dataset.picture(n) for _, n in rows if n is not None}
        self.decoded: list[bytes] = []
        self.measured: list[tuple[str, int]] = []  # family, rows
        shape = {"width": 96, "height": 64, "original_width": 96, "original_height": 64}
        self.rows = pa.Table.from_pylist(
            [
                {"uid": f"{place:032x}", "caption": caption, "offset": n, "length": n if n is None else 1}
                | {side: None if n is None else size for side, size in shape.items()}
                for place, (caption, n) in enumerate(rows)
            ]
        )
        decode = simplejpeg.decode_jpeg
        monkeypatch.setattr(simplejpeg, "decode_jpeg", lambda b, *a: self.decoded.append(b) or decode(b, *a))
        for family in (image, ocr, text):
            monkeypatch.setattr(family, "measure", self.counted(family.measure, family.__name__.rsplit(".", 1)[1]))
        monkeypatch.setattr(signals, "CHUNK_ROWS", 3)

    def counted(self, measure: Any, name: str) -> Any:
        def run(rows: pa.Table, *others: Any) -> dict[str, pa.Table]:
            self.measured.append((name, len(rows)))
            return measure(rows, *others)

        return run

    def run(self, *wanted: signals.Measurement, reuse: dict[str, pa.Table] | None = None) -> dict[str, pa.Table]:
        return signals.measure_part(self.rows, lambda offset, _: self.stored[offset], list(wanted), {}, reuse or {})

    def of(self, name: str) -> list[int]:
        return [count for family, count in self.measured if family == name]


def words() -> signals.Measurement:
    return signals.Measurement(TextSignal(kind="text"), text.schemas(TextSignal(kind="text")), {})


def pixels(after: dict[str, Expression]) -> signals.Measurement:
    options = ImageSignal(kind="image")
    return signals.Measurement(options, image.schemas(options), after)


def boxes(after: dict[str, Expression]) -> signals.Measurement:
    """A family of two tables."""
    options = OcrSignal(kind="ocr", size=64)
    return signals.Measurement(options, ocr.schemas(options), after)


def test_chunks_are_cut_by_the_rows_wanted_and_an_image_is_decoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    captions = ["a long caption" if n % 5 == 0 else "short" for n in range(20)]
    part = Part([(caption, n) for n, caption in enumerate(captions)], monkeypatch)
    found = part.run(words(), pixels(LONG), boxes(LONG))
    assert part.of("text") == [3] * 6 + [2]
    assert part.of("image") == part.of("ocr") == [3, 1], "of 20 rows 4 pass: two batches"
    assert sorted(part.decoded) == sorted(part.stored[n] for n in (0, 5, 10, 15))
    assert list(found) == ["text", "image", "ocr", "boxes_ocr"]
    there = found["image"]["phash"].is_valid().to_pylist()
    assert there == [caption != "short" for caption in captions]
    assert all(table["uid"].equals(part.rows["uid"]) for table in found.values())


def test_what_stands_between_two_that_read_pixels_is_measured_between_them(monkeypatch: pytest.MonkeyPatch) -> None:
    part = Part([(f"caption number {n}", n if n else None) for n in range(7)], monkeypatch)
    gate = {"busy": Expression("entropy > 0", ("entropy",))}
    last = signals.Measurement(TextSignal(kind="text"), text.schemas(TextSignal(kind="text")), gate)
    found = part.run(pixels({}), last, boxes(LONG))
    assert found["text"]["chars"].is_valid().to_pylist() == [False] + [True] * 6
    assert found["ocr"]["text_boxes"].is_valid().to_pylist() == [False] + [True] * 6
    assert len(part.decoded) == 6


def test_an_image_that_rows_of_two_chunks_share_has_one_value(monkeypatch: pytest.MonkeyPatch) -> None:
    part = Part([(f"caption number {n}", place) for n, place in enumerate((1, 2, 7, 7, 7, 3))], monkeypatch)
    found = part.run(pixels({}))["image"]["pixels_sha256"].to_pylist()
    assert len(set(found[2:5])) == 1
    assert len(set(found)) == 4
    assert part.decoded.count(part.stored[7]) == 2, "once a chunk"


def test_a_damaged_image_is_told_with_its_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    part = Part([("a", 0), ("b", 1)], monkeypatch)
    part.stored[1] = part.stored[1][:40]
    with pytest.raises(DataError, match=f"pair {1:032x}: its stored image is damaged .*vlmdata verify"):
        part.run(pixels({}))


def test_looser_rules_measure_the_rows_that_are_new_and_take_the_others_over(monkeypatch: pytest.MonkeyPatch) -> None:
    part = Part([("a long caption" if n % 2 else "short", n) for n in range(8)], monkeypatch)
    first = part.run(words(), boxes(LONG))
    both = ("ocr", "boxes_ocr")
    part.measured.clear()
    again = part.run(words(), boxes({}), reuse={name: first[name] for name in both})
    assert part.of("ocr") == [3, 1]
    part.measured.clear()
    whole = part.run(words(), boxes({}))
    assert part.of("ocr") == [3, 3, 2]
    assert all(again[name].equals(whole[name]) for name in both)
    part.measured.clear()
    assert part.run(words(), boxes({}), reuse={"ocr": first["ocr"]})["boxes_ocr"].equals(whole["boxes_ocr"])
    assert part.of("ocr") == [3, 3, 2], "one of two tables is not enough"
