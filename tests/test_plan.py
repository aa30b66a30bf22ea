"""Which options a table's key depends on: what is stored is made again only when its values would change."""

import copy
from typing import Any, get_args

import pytest
from pydantic import Field, create_model

from vlmdata import recipe
from vlmdata.jobs import job_key
from vlmdata.plan import Plan, make_plan
from vlmdata.recipe import ContrastiveJob, Download, LiteHeads, Options, Recipe
from vlmdata.recipe_file import apply_setting

BASE = {
    "dataset": "data",
    "sources": [{"kind": "crawl", "start": ["http://h.example/"]}],
    "signals": ["text", "image", {"kind": "clip", "after": ["wide"]}],
    "dedup": ["exact", {"kind": "perceptual"}],
    "select": {"rules": {"wide": "width > 9", "tall": "height > 9"}},
    "shards": {"splits": {"train": 0.5, "test": 0.5}},
}
STAGES = ("source", "pairs", "text", "images", "image", "clip", "duplicates", "select", "shards")


def plan(*settings: str) -> Plan:
    data = copy.deepcopy(BASE)
    for setting in settings:
        apply_setting(data, setting)
    return make_plan(Recipe.model_validate(data))


def keys(*settings: str) -> dict[str, str]:
    planned = plan(*settings)
    return {
        "source": planned.found["crawl"],
        **{name: planned.tables[name] for name in STAGES if name in planned.tables},
        "select": planned.select,
        "shards": planned.shards,
    }


UNCHANGED = keys()


@pytest.mark.parametrize(
    "setting",
    [
        # whether, how fast and under which contact an image comes: what failed is `--retry`'s
        "download.contact=me@h.example", "download.timeout=3", "download.deadline=5", "download.retries=0",
        "download.allow_hosts=['h.example:80']", "download.max_bytes=1MB", "download.concurrency=2",
        "download.per_host=1", "download.host_rate=1", "download.stop_share=1",
        "sources.crawl.contact=me@h.example", "sources.crawl.delay=1", "sources.crawl.concurrency=1",
        "sources.crawl.autothrottle=false",
        "runner={kind: dask, workers: 1}", "jobs=[{kind: train}]",
        # defaults that are written down
        "download.quality=95", "download.max_bytes=50MB", "download.timeout=10.0", "sources.crawl.name=crawl",
        "sources.crawl.max_pages=null", "signals.text={kind: text, name: '', after: []}", "signals.clip.model=lite",
        "dedup.perceptual.distance=4", "shards.samples=10000", "consent={respect: [tdm, noai, robots], optout: []}",
    ],
)  # fmt: skip
def test_what_changes_no_value_changes_no_key(setting: str) -> None:
    assert keys(setting) == UNCHANGED


@pytest.mark.parametrize(
    ("setting", "first"),
    [
        ("sources.crawl.start=['http://i.example/']", "source"),
        ("sources.crawl.max_pages=3", "source"),
        ("sources.crawl.agent=other", "source"),
        ("sources.crawl.allow_hosts=['i.example']", "source"),
        ("parts.rows=9", "pairs"),
        ("download.size=64", "images"),
        ("download.quality=50", "images"),
        ("download.max_pixels=99", "images"),
        ("download.agent=other", "images"),  # robots.txt spoke to another name
        ("dedup.perceptual.distance=3", "duplicates"),
        ("consent.respect=[robots]", "select"),
        ("consent.respect=[robots, noai, tdm, noml]", "select"),
        ("select.rules.tall=height > 8", "select"),
        ("select.rules={tall: height > 9, wide: width > 9}", "select"),
        ("select.survivor=width desc", "select"),
        ("select.balance={kind: metaclip, entries: [unigrams]}", "select"),
        ("select.sample={count: 3}", "select"),
        ("shards.samples=3", "shards"),
        ("shards.seed=3", "shards"),
        ("shards.splits={test: 0.5, train: 0.5}", "shards"),  # which images are whose depends on their order
    ],
)
def test_an_option_changes_its_table_and_those_made_from_it(setting: str, first: str) -> None:
    place = STAGES.index(first)
    changed = keys(setting)
    assert {name for name in STAGES if changed[name] != UNCHANGED[name]} == set(STAGES[place:])


def test_a_signal_changes_without_the_others() -> None:
    assert keys("signals.clip.batch=8") == UNCHANGED, "lite has batches of its own"
    others = [
        keys("signals.clip.model=ViT-S-32", "signals.clip.pretrained=random", f"signals.clip.batch={n}") for n in (8, 9)
    ]
    assert {name for name in STAGES if others[0][name] != others[1][name]} == {"clip", "duplicates", "select", "shards"}
    gated, free = (next(s for s in p.signals if s.name == "clip") for p in (plan(), plan("signals.clip.after=[]")))
    assert gated.key != free.key
    assert gated.base == free.base, "what was measured is copied"


def test_every_option_of_the_download_is_decided_on() -> None:
    assert set(Download.model_fields) - Download.unkeyed == {"size", "mode", "quality", "max_pixels", "agent", "skip"}
    assert set(Download.model_fields) >= Download.unkeyed


def every_kind(cls: type[Options] = Options) -> list[type[Options]]:
    return [kind for child in cls.__subclasses__() for kind in (child, *every_kind(child))]


@pytest.mark.parametrize("kind", [kind for kind in every_kind() if kind is not Recipe])
def test_a_later_versions_new_option_leaves_the_keys_as_they_are(kind: type[Options]) -> None:
    grown = create_model("Grown", __base__=kind, brand_new=(str | None, Field(None)))
    required: dict[str, Any] = {
        "start": ["http://h.example/"], "path": "p", "paths": ["p"], "format": "wat", "by": "words", "count": 1,
        "head": "h", "trusted": ["s"], "against": ["p"], "targets": ["p"], "data": "d", "run": ["x"],
        "job": "one",
    }  # fmt: skip
    for name in {"kind", "objective"} & kind.model_fields.keys():
        required[name] = get_args(kind.model_fields[name].annotation)[0]
    given = {name: value for name, value in required.items() if name in kind.model_fields}
    if issubclass(kind, recipe.TrainJob):  # its `targets` and `start` are other things than a signal's and a crawl's
        given = {name: value for name, value in given.items() if name in ("kind", "objective")}
    if kind is recipe.DeploymentPlace:
        given["name"] = "flow/deployment"
    assert grown.model_validate(given).keyed() == kind.model_validate(given).keyed()
    assert grown.model_validate({**given, "brand_new": "x"}).keyed() == {
        **kind.model_validate(given).keyed(), "brand_new": "x"
    }  # fmt: skip
    must = {name for name, about in kind.model_fields.items() if about.is_required()}
    assert must <= set(kind.model_validate(given).keyed()), "what has no default stays"


# Keys leave these out. Whoever changes one raises the VERSION of the module whose values it changes, then this.
DEFAULTS: dict[type[Options], dict[str, Any]] = {
    recipe.CrawlSource: {"sitemaps": True, "agent": "vlmdata", "max_page_bytes": 10_000_000},
    recipe.CommonCrawlSource: {"base": "", "agent": "vlmdata"},
    recipe.VideoSource: {
        "column": "path", "caption": "caption", "frames": "scene", "seconds": 2.0, "threshold": 10.0,
        "max_seconds": 14_400, "max_bytes": 20_000_000_000, "max_pixels": 36_000_000,
    },
    recipe.TableSource: {"split": "train"},
    recipe.FluencySignal: {"model": "smollm2", "tokens": 512},
    recipe.Download: {"size": 512, "mode": "keep_ratio", "quality": 95, "max_pixels": 100_000_000, "agent": "vlmdata",
                      "skip": False},
    recipe.LanguageSignal: {"model": "fasttext"},
    recipe.NsfwSignal: {"batch": 16},
    recipe.ClipSignal: {"model": "lite", "batch": 32, "precision": "auto"},
    recipe.AestheticSignal: {"embeddings": "clip", "activation": "none"},
    recipe.FilterSignal: {
        "model": "tiny", "steps": 200, "batch": 64, "lr": 0.001, "warmup": 10, "weight_decay": 0.1, "crop": 1.0,
        "seed": 0,
    },
    recipe.NearTargetSignal: {"embeddings": "clip", "clusters": None, "seed": 0},
    recipe.OcrSignal: {"size": 736},
    recipe.FacesSignal: {"size": 640, "threshold": 0.4},
    recipe.MaskedClipSignal: {"model": "lite", "batch": 32, "size": 736},
    recipe.SscdSignal: {"model": "sscd", "batch": 16},
    recipe.PerceptualDedup: {"distance": 4},
    recipe.DecontaminateDedup: {"distance": 4},
    recipe.SemanticDedup: {"embeddings": "clip", "similarity": 0.95},
    recipe.Select: {"survivor": "original_width * original_height desc, length(caption) desc"},
    recipe.Shards: {
        "formats": ["webdataset", "parquet"], "samples": 10_000, "seed": 0, "splits": {"train": 1.0},
        "blur_faces": False,
    },
    recipe.Balance: {
        "limit": 20_000, "entries": ["wordnet", "unigrams", "bigrams"], "wordnet": "/usr/share/wordnet",
        "min_count": 100, "min_pmi": 3.0, "unmatched": "drop", "seed": 0,
    },
    recipe.Sample: {"weights": {}, "replacement": False, "seed": 0},
    recipe.Top: {"of": "passed"},
    recipe.DatacompClipPreset: {"score": "clip_score"},
    recipe.DatacompLaion2bPreset: {"score": "clip_score"},
    recipe.DatacompImageBasedPreset: {"near_target": "near_target"},
    recipe.LaionAestheticsPreset: {"score": "aesthetic_score", "threshold": 5.0},
    recipe.CommandJob: {"name": "command", "env": {}},
    recipe.LiteHeads: {"hidden": 512, "dropout": 0.6, "temperature": 1.5, "share": 0.35, "context": 0.4},
    recipe.TrainJob: {
        "name": "train", "mix": [], "steps": 200, "batch": 64, "accumulate": 1, "lr": 0.001, "schedule": "cosine",
        "warmup": 10, "weight_decay": 0.1, "clip_norm": 1.0, "ema": 0.0, "seed": 0, "workers": 1, "threads": 1,
        "precision": "fp32", "compile": False, "parallel": "ddp", "not_finite": "stop", "peak_tflops": None,
        "save_every": 100, "keep": 2, "best": None, "eval_every": 100, "train_split": "train", "test_split": "test",
    },
    recipe.ContrastiveJob: {
        "objective": "contrastive", "model": "tiny", "pretrained": None, "heads": LiteHeads(), "crop": 1.0,
    },
}  # fmt: skip


@pytest.mark.parametrize("kind", DEFAULTS)
def test_a_default_does_not_change_unseen(kind: type[Options]) -> None:
    assert {name: kind.model_fields[name].default for name in DEFAULTS[kind]} == DEFAULTS[kind]


def test_a_job_is_the_same_with_its_defaults_written_down_and_another_with_other_heads() -> None:
    job = ContrastiveJob(kind="train")
    assert job_key(ContrastiveJob(kind="train", steps=200, heads=LiteHeads(hidden=512))) == job_key(job)
    assert ContrastiveJob(kind="train", heads=LiteHeads(hidden=8)).keyed() == {"kind": "train", "heads": {"hidden": 8}}
    others = [ContrastiveJob(kind="train", steps=1), ContrastiveJob(kind="train", heads=LiteHeads(hidden=8))]
    assert len({job_key(other) for other in [job, *others]}) == 3
