"""Reading recipes, and refusing what is wrong with them."""

import json
from pathlib import Path

import pytest

from vlmdata import recipe, recipe_file, schemas
from vlmdata.errors import InputError

GOOD = """\
dataset: runs/x
sources:
  - {kind: folder, path: photos}
signals:
  - text
  - {kind: clip, model: lite, after: [size]}
select:
  rules:
    size: original_width >= 10
"""


@pytest.fixture
def write(tmp_path):
    def write(text: str) -> Path:
        path = tmp_path / "recipe.yaml"
        path.write_text(text, "utf-8")
        return path

    return write


def test_a_recipe_has_defaults_and_kinds_alone(write):
    loaded = recipe_file.load(write(GOOD))
    assert loaded.signals[0].kind == "text"
    assert loaded.download.max_bytes == 50_000_000
    assert loaded.consent.respect == ["robots", "noai", "tdm"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD + "downlod: {}\n", r"recipe\.yaml:10: unknown key 'downlod'; did you mean 'download'\?"),
        (GOOD.replace("model: lite", "modle: lite"), r":6: unknown key 'signals\.1\.modle'; did you mean 'model'\?"),
        (GOOD.replace("after: [size]", "after: [siez]"), "no rule is called 'siez'; did you mean 'size'"),
        (GOOD + "download: {size: large}\n", r":10: download\.size"),
        (GOOD + "download: {max_bytes: 50XB}\n", r":10: download\.max_bytes"),
        (GOOD.replace("kind: folder", "kind: foldr"), r":3: sources\.0"),
        (GOOD + "shards: {splits: {train: 0.5}}\n", "add up to 1"),
        ("dataset: [", "not YAML"),
        ("- a\n", "a mapping"),
        (GOOD.replace("size: orig", "Size!: orig"), r":9: select\.rules"),
        (GOOD + "    size: chars > 3\n", r":10: 'size' stands in line 9 already"),
    ],
)
def test_what_is_wrong_is_said_with_line_and_key(write, text, message):
    with pytest.raises(InputError, match=message):
        recipe_file.load(write(text))


def test_a_recipe_that_is_not_there_is_said(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        recipe_file.load(tmp_path / "none.yaml")


JOB = (
    GOOD
    + """\
jobs:
  - {kind: train, steps: 3, compile: yes, on: {kind: slurm, partition: gpu}}
  - {kind: command, run: [train.py, "{webdataset}"], on: slurm}
"""
)


def test_a_job_says_where_it_runs_by_the_word_on(write):
    train, command = recipe_file.load(write(JOB), ["jobs.train.on.gpus=2"]).jobs
    assert (train.on.kind, train.on.partition, train.on.gpus) == ("slurm", "gpu", 2)
    assert train.compile
    assert command.on.kind == "slurm"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("partition: gpu", "partiton: gpu"), r":11: unknown key 'jobs\.0\.on\.partiton'; did you mean 'partition'\?"),
        (("steps: 3", "setps: 3"), r":11: unknown key 'jobs\.0\.setps'; did you mean 'steps'\?"),
        (("run: [", "runs: ["), r":12: jobs\.1\.run: field required"),
        (("{webdataset}", "{webdatset}"), r":12: jobs\.1\.run\.1: there is no placeholder {webdatset}; did you mean"),
        (("on: slurm", "on: slrum"), r":12: jobs\.1\.on: "),
    ],
)
def test_what_is_wrong_with_a_job_is_said_with_line_and_key(write, change, message):
    with pytest.raises(InputError, match=message):
        recipe_file.load(write(JOB.replace(*change)))


def test_set_reaches_list_entries_by_kind_and_adds_rules_last(write):
    loaded = recipe_file.load(
        write(GOOD),
        [
            "signals.clip.model=ViT-B-32",
            "select.rules.long=chars > 3",
            "download.max_bytes=1MB",
            "signals.text.after=[size]",
        ],
    )
    assert loaded.signals[1].model == "ViT-B-32"
    assert list(loaded.select.rules) == ["size", "long"]
    assert loaded.download.max_bytes == 1_000_000
    assert loaded.signals[0].after == ["size"]
    with pytest.raises(InputError, match="no entry 'clipp'; did you mean 'clip'"):
        recipe_file.load(write(GOOD), ["signals.clipp.model=x"])
    with pytest.raises(InputError, match=r"key\.path=value"):
        recipe_file.load(write(GOOD), ["nothing"])


def test_what_a_setting_has_made_wrong_is_said_of_the_setting(write):
    with pytest.raises(InputError, match=r"^--set download\.size: download\.size: "):
        recipe_file.load(write(GOOD), ["download.size=large"])
    with pytest.raises(InputError, match=r"^--set signals\.clip\.modle: unknown key"):
        recipe_file.load(write(GOOD), ["signals.clip.modle=lite"])


def test_later_errors_of_a_key_get_its_line(write):
    path = write(GOOD)
    for key, line in (("select.rules.size", 9), ("signals.clip.after", 6), ("sources.folder.path", 3), ("dataset", 1)):
        with pytest.raises(InputError, match=rf"recipe\.yaml:{line}: {key}: is wrong"), recipe_file.located(path):
            raise InputError(f"{key}: is wrong")
    with pytest.raises(InputError, match=r"^elsewhere: is wrong"), recipe_file.located(path):
        raise InputError("elsewhere: is wrong")


def test_the_json_schema_is_the_models():
    # Remade by: python -m vlmdata.recipe > schemas/recipe.schema.json
    assert schemas.json_schema("recipe") == json.loads(json.dumps(recipe.Recipe.model_json_schema()))


def test_the_ready_recipes_are_recipes():
    for path in sorted(Path("recipes").glob("*.yaml")):
        assert recipe_file.load(path).sources
