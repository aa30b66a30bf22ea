"""A pool of DataComp's metadata: its signals are there, and it can be selected from without a download."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vlmdata import card, ingest, snapshot, sources
from vlmdata.dataset import Dataset
from vlmdata.errors import InputError
from vlmdata.export import export
from vlmdata.pipelines import download, select, shards, signals
from vlmdata.plan import make_plan
from vlmdata.recipe import DatacompSource, Recipe
from vlmdata.report import write_report
from vlmdata.rules import evaluate

# As the published pools have it.
SCHEMA = pa.schema(
    [("uid", pa.string()), ("url", pa.string()), ("text", pa.string()), ("original_width", pa.int64()),
     ("original_height", pa.int64()), ("clip_b32_similarity_score", pa.float32()),
     ("clip_l14_similarity_score", pa.float32()), ("face_bboxes", pa.list_(pa.list_(pa.float64()))),
     ("sha256", pa.string())]
)  # fmt: skip


def rows(count, first=0):
    random = np.random.default_rng(first)
    return [
        {
            "uid": f"{(first + n) * 0x9E3779B97F4A7C15F39CC0605CEDC835 % 2**128:032x}",
            "url": f"http://example.org/{first + n}.jpg",
            "text": f"a picture of number {first + n}",
            "original_width": int(random.integers(100, 900)),
            "original_height": 400,
            "clip_b32_similarity_score": float(random.uniform(0, 0.5)),
            "clip_l14_similarity_score": float(random.uniform(0, 0.5)) if n % 7 else None,
            "face_bboxes": [[0.25, 0.5, 0.75, 1.0]] * (n % 3),
            "sha256": f"{first + n:064x}",
        }
        for n in range(count)
    ]


@pytest.fixture
def pool(tmp_path):
    """(folder, its rows): two Parquet files with npz files beside them."""
    folder = tmp_path / "metadata"
    folder.mkdir()
    made = []
    for name, first in (("0a", 0), ("0b", 30)):
        part = rows(30, first)
        pq.write_table(pa.Table.from_pylist(part, SCHEMA), folder / f"{name}.parquet")
        np.savez(folder / f"{name}.npz", l14_img=np.arange(first, first + 30, dtype=np.float16)[:, None])
        made += part
    return folder, made


def test_its_columns_are_signals_of_the_source(pool):
    folder, made = pool
    for path in (folder, f"{folder}/", f"{folder}/*.parquet"):
        source = DatacompSource(kind="datacomp", path=str(path))
        sources.check(source)
        found = pa.Table.from_batches(sources.read(source, ".")).to_pylist()
        assert len(found) == 60
    for row, told in zip(found, made, strict=True):
        assert (row["source_id"], row["url"], row["caption"]) == (told["uid"], told["url"], told["text"])
        assert row["expected_hash"] == f"sha256:{told['sha256']}"
        assert (row["source"], row["caption_from"]) == ("datacomp", "text")
        assert row["source_original_width"] == told["original_width"]
        for model in ("b32", "l14"):
            score = f"clip_{model}_similarity_score"
            assert row[f"source_{score}"] == pytest.approx(told[score])
        assert json.loads(row["source_face_bboxes"]) == told["face_bboxes"]
        with np.load(folder / f"{row['source_file']}.npz") as features:
            assert features["l14_img"][row["source_row"]] == made.index(told)


def test_what_is_no_pool_is_refused(tmp_path):
    with pytest.raises(InputError, match="matches no file"):
        sources.check(DatacompSource(kind="datacomp", path=str(tmp_path)))
    pq.write_table(pa.table({"url": ["http://e.org/1.jpg"], "text": ["a"]}), tmp_path / "0.parquet")
    with pytest.raises(InputError, match="has no column 'uid'"):
        sources.check(DatacompSource(kind="datacomp", path=str(tmp_path)))


def recipe(folder, tmp_path, **changes):
    data = {
        "dataset": str(tmp_path / "data"),
        "sources": [{"kind": "datacomp", "path": str(folder)}],
        "download": {"skip": True},
        "signals": ["text"],
        "select": {
            "rules": {
                "size": "least(source_original_width, source_original_height) >= 200",
                "aligned": "source_clip_l14_similarity_score >= 0.2",
            }
        },
        "parts": {"rows": 25},
        **changes,
    }
    return make_plan(Recipe.model_validate(data))


def test_a_pool_is_selected_from_and_exported_without_a_download(pool, tmp_path):
    folder, made = pool
    plan = recipe(folder, tmp_path)
    dataset = Dataset(plan.recipe.dataset)
    found = [ingest.read_source(dataset, source, plan.found[source.name]) for source in plan.recipe.sources]
    pairs = ingest.unite(dataset, found, plan.pairs, plan.recipe.parts.rows, None, plan.brings)
    tables = {"pairs": pairs, "source_signals": dataset.read_table("source_signals", plan.pairs)}
    tables["images"] = download.run(plan, dataset, pairs)
    tables |= signals.run(plan, dataset, tables)
    selection = select.run(plan, dataset, tables, 1)
    written = shards.run(plan, dataset, tables, selection, 1)
    assert written == []
    documents = card.write_documents(dataset, snapshot.manifest(plan, 1, tables, selection.samples, written, []))
    manifest = snapshot.manifest(plan, 1, tables, selection.samples, written, documents)
    dataset.publish(manifest)
    wanted = {
        row["uid"] for row in made
        if min(row["original_width"], row["original_height"]) >= 200 and (row["clip_l14_similarity_score"] or 0) >= 0.2
    }  # fmt: skip
    assert 0 < len(wanted) < 60
    assert [step["reason"] for step in manifest["funnel"]] == [None, "size", "aligned"]
    assert manifest["funnel"][-1]["left"] == len(wanted)
    ids = np.load(export(dataset, manifest, "datacomp", str(tmp_path / "subset.npy")))
    assert [f"{high:016x}{low:016x}" for high, low in ids.tolist()] == sorted(wanted)
    assert list(snapshot.verify(dataset)) == []
    assert "No image was fetched, so there are no shards." in dataset.read_bytes(documents[0]["path"]).decode()
    with open(write_report(dataset, manifest), encoding="utf-8") as page:
        assert "not fetched" in page.read()


def test_what_needs_images_is_refused_where_none_are_fetched(pool, tmp_path):
    folder, _ = pool
    with pytest.raises(InputError, match=r"signals\.image: it looks at images"):
        recipe(folder, tmp_path, signals=["image"])
    with pytest.raises(InputError, match=r"dedup\.exact: it compares images"):
        recipe(folder, tmp_path, dedup=["exact"])
    with pytest.raises(ValueError, match="nothing for jobs"):
        recipe(folder, tmp_path, jobs=[{"kind": "train"}])
    assert recipe(folder, tmp_path).images != recipe(folder, tmp_path, download={}).images


def test_without_images_the_sizes_are_those_that_the_pool_states(pool, tmp_path):
    folder, made = pool
    plan = recipe(folder, tmp_path, signals=["text", "language"], select={"preset": "datacomp-basic"}, dedup=["url"])
    read = {column for name, rule in plan.rules.items() if name.endswith(("size", "aspect")) for column in rule.columns}
    assert read == {"source_original_width", "source_original_height"}
    assert "source_original_width" in plan.checked.survivor[0].expression.columns
    rows = pa.Table.from_pylist(
        [{f"source_{side}": row[side] for side in ("original_width", "original_height")} for row in made]
    )
    shorter, longer = np.sort([rows["source_original_width"], rows["source_original_height"]], axis=0)
    values = evaluate(rows, {name: plan.rules[f"datacomp-basic/{name}"] for name in ("size", "aspect")})
    assert values["size"].to_pylist() == (shorter >= 200).tolist()
    assert values["aspect"].to_pylist() == (longer <= 3 * shorter).tolist()


@pytest.mark.parametrize(
    ("select", "message"),
    [
        (
            {"rules": {"size": "original_width > 9"}},
            r"rules\.size: 'original_width' is null .* 'source_original_width'",
        ),
        ({"survivor": "length(caption) desc, received_bytes"}, r"survivor, term 2: 'received_bytes' is null for every"),
        ({"top": {"by": "original_height", "count": 3}}, r"top\.by: .* source's is 'source_original_height'"),
        ({"sample": {"count": 3, "weights": "width"}}, r"sample\.weights: 'width' is null for every pair"),
    ],
)
def test_a_selection_by_what_only_a_download_measures_is_refused(pool, tmp_path, select, message):
    with pytest.raises(InputError, match=message):
        recipe(pool[0], tmp_path, select=select)
    recipe(pool[0], tmp_path, select=select, download={})


def test_without_any_size_the_survivor_has_the_longest_caption(tmp_path):
    (tmp_path / "list.csv").write_text("url,caption\nhttp://h.example/a,a\n")
    source = {"kind": "table", "path": str(tmp_path / "list.csv")}
    about = {"sources": [source], "dedup": ["url"], "signals": ["text", "language"]}
    (order,) = recipe("", tmp_path, **about, select={}).checked.survivor
    assert (order.expression.columns, order.direction) == (("caption",), "desc")
    with pytest.raises(InputError, match="datacomp-basic/size needs the images' sizes: a source that keeps original_w"):
        recipe("", tmp_path, **about, select={"preset": "datacomp-basic"})
