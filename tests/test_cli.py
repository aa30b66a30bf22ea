"""Bad input is refused before work starts, in one line, with the right exit code."""

import os

import pytest
import yaml
from conftest import RECIPE, make_photos, write_recipe

from vlmdata import cli
from vlmdata.console import clean
from vlmdata.dataset import Dataset
from vlmdata.lock import lock
from vlmdata.parts import Table


@pytest.fixture
def run(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    make_photos(tmp_path / "photos")

    def run(*arguments):
        code = cli.guarded(lambda: cli.app(list(arguments), standalone_mode=False))
        out, err = capfd.readouterr()
        return code, out, err

    return run


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"signal": []}, "unknown key 'signal'; did you mean 'signals'?"),
        ({"select": {"rules": {"words": "wrods > 1"}}}, "there is no column 'wrods'; did you mean 'words'?"),
        ({"select": {"rules": {"words": "words >"}}}, "recipe.yaml:14: select.rules.words: SQL that does not parse"),
        ({"select": {"rules": {"words": "words"}}}, "not BOOLEAN"),
        ({"select": {"rules": {}, "survivor": "no_such desc"}}, "select.survivor"),
        ({"sources": [{"kind": "folder", "path": "nowhere"}]}, "nowhere"),
        ({"sources": [{"kind": "folder", "path": "empty"}]}, "empty"),
        ({"sources": [{"kind": "table", "path": "list.csv"}]}, "'caption'"),
        ({"dedup": [{"kind": "semantic", "embeddings": "clipp"}]}, "did you mean 'embeddings_clip'?"),
        ({"shards": {"columns": ["wrods"]}}, "did you mean 'words'?"),
        ({"signals": ["text", {"kind": "clip", "model": "ViT-B-33", "pretrained": "x"}]}, "ViT-B-33"),
        ({"signals": ["text", {"kind": "clip", "model": "ViT-B-32"}]}, "needs `pretrained`"),
    ],
)
def test_a_wrong_recipe_is_refused_before_anything_runs(run, tmp_path, changes, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "list.csv").write_text("url,text\nhttp://a/b.jpg,c\n")
    kept = {
        **RECIPE,
        "signals": ["text", "language", "image"],
        "dedup": [],
        "select": {"rules": {"words": "words > 2"}},
    }
    if "dedup" in changes:
        kept = RECIPE
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({"dataset": "runs/it", **kept, **changes}))
    code, out, err = run("run", "recipe.yaml")
    assert code == 2
    assert message in err
    assert err.startswith("error: ")
    assert out == ""
    assert not os.path.exists("runs")


def test_what_is_not_there_is_said(run):
    for arguments in (("run", "none.yaml"), ("sql", "none", "select 1"), ("show", "none", "x"), ("verify", "none")):
        code, out, err = run(*arguments)
        assert code == 2, arguments
        assert "none" in err
        assert out == ""


def test_a_wrong_option_is_the_users_error(run, tmp_path):
    recipe = str(write_recipe(tmp_path))
    wrong = [
        ("--stages", "ingst"),
        ("--stages", ""),
        ("--set", "x"),
        ("--limit", "0"),
        ("--runner", "drect"),
        ("--nonsense",),
    ]
    for arguments in [("run", recipe, *options) for options in wrong] + [("nonsense",), ("run",)]:
        code, _, err = run(*arguments)
        assert code == 2, arguments
        assert err.startswith("error: ")


def test_a_dataset_in_use_is_refused(run, tmp_path):
    recipe = str(write_recipe(tmp_path))
    with lock(Dataset(str(tmp_path / "runs/it")), "another run"):
        code, out, err = run("run", recipe)
    assert code == 5
    assert "another run" in err
    assert out == ""


def test_other_parts_than_the_datasets_are_refused(run, tmp_path):
    recipe = write_recipe(tmp_path)
    dataset = Dataset(str(tmp_path / "runs/it"))
    dataset.write_table(Table("pairs", "0" * 16, (), about={"rows": 10_000}))
    code, _, err = run("run", str(recipe))
    assert code == 2
    assert "parts.rows: runs/it was made with parts of 10000 rows" in err


def test_the_plan_says_what_is_missing(run, tmp_path):
    code, out, _ = run("plan", str(write_recipe(tmp_path)))
    assert code == 0
    assert "not read yet" in out
    assert not os.path.exists("runs")


def test_text_of_others_cannot_steer_a_terminal():
    assert clean("a\x1b[31mred\x07\u202e") == "a\ufffd[31mred\ufffd\ufffd"
