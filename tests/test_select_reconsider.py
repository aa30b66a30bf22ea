"""What `vlmdata funnel` says is what a run with that selection then publishes."""

import json
import os
import shutil

import pytest
from made_dataset import pair, pairs, picture, publish
from typer.testing import CliRunner

from vlmdata.catalog import connect
from vlmdata.cli import app
from vlmdata.dataset import Dataset
from vlmdata.errors import DataError, InputError
from vlmdata.parts import snapshot_folder
from vlmdata.pipelines import select
from vlmdata.plan import make_plan, tables_there
from vlmdata.recipe import Recipe
from vlmdata.recipe_file import apply_setting
from vlmdata.select.reconsider import reconsider

GATED = {"signals": ["text", "language", {"kind": "image", "after": ["words"]}]}


def made():
    more = [pair(f"a further photograph of the tall house number {n}", picture(n % 7 + 80)) for n in range(12)]
    return [*pairs(), *more]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return publish(tmp_path_factory.mktemp("published"), made(), GATED)[0]


@pytest.fixture(scope="module")
def merged(tmp_path_factory):
    """Every kind of survivor; pictures 3 and 5, and those alone, stand in the evaluation set by their bytes."""
    folder = tmp_path_factory.mktemp("merged")
    (folder / "evals").mkdir()
    for seed in (3, 5):
        (folder / "evals" / f"{seed}.jpg").write_bytes(picture(seed))
    again = [pair(f"the same picture in another size, number {n}", picture(n, 90, 60)) for n in range(2, 9)]
    like = {"groups": "semdedup", "merge": "captions"}
    changes = {
        "signals": ["text", "language", "image", {"kind": "clip", "model": "lite"}],
        "dedup": [
            {"kind": "exact", "merge": "captions"},
            {"kind": "perceptual", "distance": 8, **like},
            {"kind": "semantic", "similarity": 0.97, **like},
            {"kind": "decontaminate", "against": [str(folder / "evals")], "distance": None},
        ],
        "select": {"rules": {"chars": "chars > 3"}, "survivor": "hard"},
        "jobs": [],
    }
    return publish(folder, [*made(), *again], changes)[0]


def same_as_a_run(dataset, folder, settings):
    published, steps, left_out = reconsider(dataset, settings)
    assert published == dataset.latest()["funnel"]
    assert not left_out
    # the same tables, judged anew by the stage itself
    shutil.copytree(dataset.root, folder / "data")
    copied = Dataset(str(folder / "data"))
    changed = {**copied.latest()["recipe"], "dataset": copied.url}
    for setting in settings:
        apply_setting(changed, setting)
    plan = make_plan(Recipe.model_validate(changed))
    assert steps == select.run(plan, copied, tables_there(plan, copied), 2).funnel
    # a snapshot of before there was the file
    path = f"{snapshot_folder(1)}/manifest.json"
    manifest = copied.read_json(path)
    del manifest["grouped"]
    copied.write_bytes(path, json.dumps(manifest).encode())
    assert reconsider(copied, settings)[1] == steps


@pytest.mark.parametrize(
    "settings",
    [
        ["select.survivor=easy"],
        ["select.rules.chars=chars > 47"],
        ["select.rules={}", "select.top={by: words, count: 9}", "select.sample={count: 4}"],
        ["select.survivor=random", "select.top={by: entropy, fraction: 0.5, of: pool}", "select.sample={count: 3}"],
        ["select.preset=[{kind: datacomp-clip, score: entropy, fraction: 0.6}]", "select.survivor=chars asc"],
    ],
)
def test_the_funnel_is_that_of_a_run_where_captions_are_merged(merged, tmp_path, settings):
    same_as_a_run(merged, tmp_path, settings)


def test_what_is_decontaminated_goes_first_and_gives_nobody_its_captions(merged):
    published = merged.latest()["funnel"]
    found = [step["reason"] for step in published if str(step["reason"]).startswith("duplicate")]
    assert found[0] == "duplicate: decontaminate"
    with connect(merged) as connection:
        rows = connection.sql("SELECT caption, captions, reason, kept FROM samples").fetchall()
    evaluated = {caption for caption, _, reason, _ in rows if reason == "duplicate: decontaminate"}
    assert len(evaluated) == 2
    given = {text for _, captions, _, kept in rows if kept for text in captions[1:]}
    assert len(given) > 5
    assert not given & evaluated


@pytest.mark.parametrize(
    "settings",
    [
        ["select.rules.english=lang = 'en' and lang_score > 0.9", "select.rules.new=chars < 48"],
        ["select.rules.size=chars > 0", "select.survivor=chars desc", "select.top={by: entropy, fraction: 0.3}"],
        ["select.top={by: sharpness, fraction: 0.5, of: pool}", "select.sample={count: 5, weights: chars}"],
        ["select.preset=[{kind: datacomp-clip, score: entropy, fraction: 0.4}, {kind: obelics-image}]"],
        ["select.rules={words: words between 4 and 5000 and chars >= 2}"],
        ["select.rules.size=chars > 0", "select.top={by: words, count: 11, of: pool}", "select.sample={count: 4}"],
        ["select.rules.english=chars > 0", "select.top={by: words - words, count: 11, of: pool}"],
        ["select.rules={words: words between 4 and 5000 and chars >= 2}", "select.sample={count: 5, seed: 3}"],
    ],
)
def test_the_funnel_is_that_of_a_run(dataset, tmp_path, settings):
    same_as_a_run(dataset, tmp_path, settings)


def test_a_rule_that_fails_on_a_row_that_another_rejects_fails_as_in_a_run(dataset):
    settings = ["select.rules.none=words < 0", "select.rules.number=CAST(caption AS INTEGER) > 3"]
    for more in ([], ["select.top={by: entropy, count: 3}"], ["select.top={by: entropy, count: 3, of: pool}"]):
        with pytest.raises(DataError, match="Could not convert string"):
            reconsider(dataset, [*settings, *more])


def test_nothing_is_written_and_a_table_is_printed(dataset):
    files = {path: os.stat(path).st_mtime_ns for path in dataset.fs.find(dataset.root)}
    result = CliRunner().invoke(app, ["funnel", dataset.url, "--set", "select.rules.busy=entropy > 100"])
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["rejected", "left", "published", "difference"]
    kept = dataset.latest()["funnel"][-1]["left"]
    assert lines[-1].split() == ["kept", "0", f"{kept:,}", f"-{kept:,}"]
    assert {path: os.stat(path).st_mtime_ns for path in dataset.fs.find(dataset.root)} == files


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("select.rules.busy=entropi > 1", "no column 'entropi'; did you mean 'entropy'"),
        ("select.rules.busy=read_text('/etc/passwd') = 'x'", r"read_text\(\) is no function that a rule may call"),
        ("select.top={by: caption, count: 3}", r"select\.top\.by: the expression is VARCHAR, not a number"),
        ("select.top={by: entropy}", "either `fraction` or `count`"),
        ("dedup=[]", r"only `select\.…` is judged again"),
        ("select.preset=datacomp-clip", "needs a signal with the column clip_score"),
    ],
)
def test_what_is_no_selection_is_refused(dataset, setting, message):
    with pytest.raises(InputError, match=message):
        reconsider(dataset, [setting])
