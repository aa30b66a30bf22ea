"""Zero-shot classification: known answers on every form of data, hostile names, broken pictures, any batch."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coloured import BROKEN, COLOURS, MODEL, encode_texts, jpg, tar, unit

from vlmdata.errors import DataError, InputError
from vlmdata.evaluate import material, zeroshot
from vlmdata.recipe import ContrastiveJob, Evaluation

RED, GREEN, BLUE = COLOURS.values()


def measured(data: Path | str, spool: Path, **options: Any) -> tuple[dict[str, Any], set[str]]:
    found = material.find(str(data), Evaluation(resamples=50, **options), spool)
    assert zeroshot.refused(MODEL, found) is None
    return zeroshot.measure(MODEL, found), found.broken


def folders(root: Path, classes: dict[str, list[bytes]]) -> Path:
    for name, pictures in classes.items():
        (root / name).mkdir(parents=True)
        for number, content in enumerate(pictures):
            (root / name / f"{number}.jpg").write_bytes(content)
    return root


def test_a_folder_for_each_class(tmp_path: Path) -> None:
    root = folders(tmp_path / "d", {"red": [jpg(RED)] * 4, "green": [jpg(GREEN), jpg(RED)], "blue": [jpg(BLUE)]})
    found, broken = measured(root, tmp_path)
    assert not broken
    assert (found["n"], found["classes"], found["templates"]) == (7, 3, 80)
    assert found["top-1"] == pytest.approx(6 / 7)
    assert found["top-1/chance"] == pytest.approx(1 / 3)
    assert found["top-5"] == found["top-5/chance"] == 1
    assert found["mean_per_class_recall"] == pytest.approx((1 + 0.5 + 1) / 3)
    # Only the class green has anything to draw: none, one or two right.
    assert found["mean_per_class_recall/interval"] == pytest.approx([2 / 3, 1])
    assert found["top-1/interval"][0] < 6 / 7


def test_names_of_classes_are_never_more_than_text(tmp_path: Path) -> None:
    names = ["red {c} {} {0.__class__} %s", "<b>green&amp;\n$(reboot)", "blue_'; drop table \N{RIGHT-TO-LEFT OVERRIDE}"]
    root = folders(tmp_path / "d", {name: [jpg(c)] * 2 for name, c in zip(names, (RED, GREEN, BLUE), strict=True)})
    (root / ".git").mkdir()
    (root / ".git" / "a.jpg").write_bytes(jpg(RED))
    (root / "empty").mkdir()
    for templates in (None, "simple", str(tmp_path / "own.txt")):
        (tmp_path / "own.txt").write_text("a {c} thing\n\nthe {} of {0}\n")
        found, _ = measured(root, tmp_path, templates=templates)
        assert (found["top-1"], found["classes"]) == (1, 3)
    assert found["templates"] == 2
    loaded = material.find(str(root), Evaluation(), tmp_path).labelled
    assert sorted(loaded.names) == sorted(name.replace("_", " ") for name in names)


def test_what_cannot_be_decoded_is_counted_and_the_rest_measured_whatever_the_batch(tmp_path: Path) -> None:
    root = folders(
        tmp_path / "d",
        {"red": [jpg(RED), BROKEN, jpg(GREEN)], "green": [b"", jpg(GREEN)], "blue": [jpg(RED), jpg(BLUE)]},
    )
    results = [measured(root, tmp_path, batch=batch, workers=workers) for batch, workers in ((1, 0), (3, 2), (64, 1))]
    assert results[0] == results[1] == results[2]
    found, broken = results[0]
    assert broken == {"red/1.jpg", "green/0.jpg"}
    assert (found["n"], found["top-1"]) == (5, 3 / 5)


def test_a_model_that_tells_no_class_from_another_has_no_accuracy(tmp_path: Path) -> None:
    root = folders(tmp_path / "d", {"car": [jpg(RED)] * 3, "bus": [jpg(GREEN)] * 3})
    assert measured(root, tmp_path)[0]["top-1"] == 0  # all classes tie


def test_shards_as_clip_benchmark_has_them(tmp_path: Path) -> None:
    """Numbers in .cls, names and templates beside the folder of a split."""
    samples = {f"s{i}": {"jpg": jpg(c), "cls": str(k)} for i, (c, k) in enumerate([(RED, 0), (BLUE, 1), (GREEN, 1)])}
    tar(tmp_path / "wds" / "test" / "0.tar", samples)
    tar(tmp_path / "wds" / "test" / "1.tar", {"broken": {"jpg": BROKEN, "cls": "0"}, "half": {"cls": "1"}})
    with pytest.raises(InputError, match="--classes"):
        measured(tmp_path / "wds" / "test", tmp_path)
    (tmp_path / "wds" / "classnames.txt").write_text("red\nblue\ngreen\n")
    (tmp_path / "wds" / "zeroshot_classification_templates.txt").write_text("a {c} thing\n")
    found, broken = measured(tmp_path / "wds" / "test", tmp_path)
    assert broken == {"broken"}
    assert (found["n"], found["classes"], found["templates"]) == (3, 3, 1)
    assert found["top-1"] == pytest.approx(2 / 3)
    assert found["mean_per_class_recall"] == 0.75  # no picture is green's
    (tmp_path / "two.txt").write_text("red\n")
    with pytest.raises(InputError, match="1 names for classes from 0 to 1"):
        measured(tmp_path / "wds" / "test", tmp_path, classes=str(tmp_path / "two.txt"))


def test_a_key_of_the_json_names_the_class(tmp_path: Path) -> None:
    samples = {
        f"s{i}": {"jpg": jpg(colour), "txt": "a caption", "json": {"kind": kind, "number": number}}
        for i, (colour, kind, number) in enumerate([(RED, "red", 1.0), (GREEN, "green", 0.0), (RED, "", 1.0)])
    }
    shard = tar(tmp_path / "test-0.tar", samples)
    found, _ = measured(shard, tmp_path, label="kind")
    assert (found["n"], found["classes"], found["top-1"]) == (2, 2, 1)
    (tmp_path / "names.txt").write_text("green\nred\n")
    found, _ = measured(shard, tmp_path, label="number", classes=str(tmp_path / "names.txt"))
    assert (found["n"], found["top-1"]) == (3, 1)
    with pytest.raises(InputError, match="no sample with a class"):
        measured(shard, tmp_path, label="other")
    (tmp_path / "names.txt").write_text("greem\nred\n")
    with pytest.raises(InputError, match=r"'green' is not among.*greem"):
        measured(shard, tmp_path, label="kind", classes=str(tmp_path / "names.txt"))
    odd = tar(tmp_path / "odd.tar", {"s": {"jpg": jpg(RED), "txt": "a", "json": {"kind": ["red"]}}})
    with pytest.raises(DataError, match=r"s\.json: kind"):
        measured(odd, tmp_path, label="kind")


def test_a_set_that_datasets_saved(tmp_path: Path) -> None:
    import datasets

    kinds = datasets.Features({"img": datasets.Image(), "kind": datasets.ClassLabel(names=["red", "green"])})
    images = [{"bytes": data, "path": None} for data in (jpg(RED), jpg(GREEN), BROKEN, jpg(GREEN))]
    rows = datasets.Dataset.from_dict({"img": images, "kind": [0, 1, 0, 0]}, features=kinds)
    rows.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": rows.select([1]), "test": rows}).save_to_disk(tmp_path / "two")
    for name in ("one", "two"):
        found, broken = measured(tmp_path / name, tmp_path)
        assert broken == {"row 2"}
        assert (found["n"], found["classes"]) == (3, 2)
        assert found["top-1"] == pytest.approx(2 / 3)
    assert measured(tmp_path / "two", tmp_path, split="train")[0]["n"] == 1
    with pytest.raises(InputError, match="no split 'tset'; did you mean 'test'"):
        measured(tmp_path / "two", tmp_path, split="tset")


def test_a_limit_draws_from_all_classes_by_the_seed(tmp_path: Path) -> None:
    root = folders(tmp_path / "d", {"red": [jpg(RED)] * 20, "green": [jpg(GREEN)] * 20})
    options = [Evaluation(limit=10, seed=seed) for seed in (0, 0, 1)]
    one, same, other = (material.find(str(root), each, tmp_path).labelled.uids for each in options)
    assert one == same != other
    assert {uid.split("/")[0] for uid in one} == {"red", "green"}
    found, _ = measured(root, tmp_path, limit=10)
    assert (found["n"], found["top-1"]) == (10, 1)  # the pictures are those of the labels


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"templates": "openai"}, "neither imagenet, simple, nor a file"),
        ({"classes": "nowhere.txt"}, "nowhere.txt"),
        ({"split": "test"}, "no split"),
    ],
)
def test_what_is_not_there_is_refused(tmp_path: Path, options: dict[str, str], said: str) -> None:
    data: Path | str = folders(tmp_path / "d", {"red": [jpg(RED)], "green": [jpg(GREEN)]})
    if "split" in options:
        data = tar(tmp_path / "train-0.tar", {"s": {"jpg": jpg(RED), "cls": "red"}})
    with pytest.raises(InputError, match=said):
        measured(data, tmp_path, **options)


def test_one_folder_alone_is_no_set_of_classes(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="one for each class"):
        measured(folders(tmp_path / "d", {"red": [jpg(RED)]}), tmp_path)


def test_a_template_without_a_place_for_the_name_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("a photo\n")
    with pytest.raises(InputError, match="'a photo' has no"):
        zeroshot.templates(str(tmp_path / "t.txt"), None)


def test_the_classifier_is_open_clips_own() -> None:
    from open_clip import build_zero_shot_classifier
    from open_clip.zero_shot_metadata import SIMPLE_IMAGENET_TEMPLATES

    from vlmdata.train.loop import build

    objective: Any = build(ContrastiveJob(kind="train", model="tiny"))
    objective.model.eval()
    names = ["red", "green fish", "blue car"] * 5
    theirs = build_zero_shot_classifier(objective.clip, objective.tokenizer, names, SIMPLE_IMAGENET_TEMPLATES)
    ours = zeroshot.classes(objective.encoder(7).encode_texts, names, list(SIMPLE_IMAGENET_TEMPLATES))
    assert np.abs(ours - theirs.numpy().T).max() < 1e-5


def test_a_classs_prompts_are_averaged_as_unit_vectors() -> None:
    prompts = [lambda name: f"a {name} one", lambda name: "green"]
    found = zeroshot.classes(encode_texts, ["red", "blue"], prompts)
    expected = unit(np.stack([unit(np.array([c, GREEN], np.float64)).mean(0) for c in (RED, BLUE)]))
    assert np.abs(found - expected).max() < 1e-6
