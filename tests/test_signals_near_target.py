"""Pairs in the clusters of targets, against DataComp's definition restated in plain numpy."""

import json
from pathlib import Path
from typing import Any

import cv2
import made_dataset
import numpy as np
import pyarrow as pa
import pytest
from test_signals_clip import TINY
from test_signals_filter import drawing

from vlmdata import recipe
from vlmdata.catalog import connect
from vlmdata.dataset import Dataset
from vlmdata.dedup import partitions
from vlmdata.errors import InputError
from vlmdata.pipelines import clusters
from vlmdata.signals import near_target
from vlmdata.snapshot import verify

CLUSTERS = 9


def crowded(n: int, width: int, seed: int) -> np.ndarray:
    """float16 [n, width]: vectors of any length that crowd around some directions."""
    draw = np.random.default_rng(seed)
    middles = np.random.default_rng(0).normal(size=(40, width))
    return ((middles[draw.integers(0, 40, n)] + draw.normal(0, 0.7, (n, width))) * 0.1).astype(np.float16)


def argmax(vectors: np.ndarray, centroids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The definition: the centroid with the largest inner product; and by how much it is ahead of the second."""
    unit = vectors.astype(np.float64) / np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    products = unit @ (centroids / np.linalg.norm(centroids, axis=1, keepdims=True)).T
    ordered = np.sort(products, axis=1)
    return products.argmax(axis=1), ordered[:, -1] - ordered[:, -2]


def rows(vectors: np.ndarray) -> pa.Table:
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])
    return pa.table({"uid": [f"{n:032x}" for n in range(len(vectors))], "embeddings_clip": column})


def checkpoint(folder: Path, centroids: np.ndarray, near: np.ndarray) -> recipe.NearTargetSignal:
    folder.mkdir()
    for name, array in zip(near_target.FILES, (centroids, near), strict=True):
        np.save(folder / name, array)
    return recipe.NearTargetSignal(kind="near_target", checkpoint=str(folder))


def test_the_same_centroids_give_the_same_clusters_and_the_same_pairs(tmp_path: Path) -> None:
    pool, targets = crowded(3_000, 64, 1), crowded(25, 64, 2)
    centroids = partitions.whole(near_target.unit(rows(crowded(200, 64, 3))["embeddings_clip"])[0])
    (cluster, ahead), (hit, hit_ahead) = argmax(pool, centroids), argmax(targets, centroids)
    near = np.zeros(200, bool)
    near[partitions.nearest_one(partitions.whole(near_target.unit(rows(targets)["embeddings_clip"])[0]), centroids)] = 1
    assert set(hit[hit_ahead > 0.001]) <= set(np.flatnonzero(near)) <= set(hit) | set(hit[hit_ahead <= 0.001])
    found = near_target.measure(rows(pool), None, checkpoint(tmp_path / "m", centroids, near))["near_target"]
    clear = ahead > 0.001  # vectors count in steps of 1 / 4000
    assert clear.mean() > 0.97
    expected = near[cluster]
    assert 100 < expected.sum() < 2_500
    np.testing.assert_array_equal(found["near_target"].to_numpy()[clear], expected[clear])


def test_what_is_no_vector_is_null_and_other_vectors_are_refused(tmp_path: Path) -> None:
    pool = crowded(4, 64, 1)
    pool[1], pool[2, 0] = 0, np.nan
    options = checkpoint(tmp_path / "m", partitions.whole(np.eye(64, dtype=np.float32)), np.ones(64, bool))
    assert near_target.measure(rows(pool), None, options)["near_target"]["near_target"].to_pylist() == [
        True, None, None, True,
    ]  # fmt: skip
    with pytest.raises(InputError, match=r"of length 64, .* length 32"):
        near_target.measure(rows(crowded(4, 32, 1)), None, options)


def write_model(folder: Path) -> None:
    """A small CLIP with drawn weights: its embeddings tell drawings apart, which is all that is asked of them."""
    import open_clip
    import torch
    from safetensors.torch import save_file

    folder.mkdir()
    torch.manual_seed(1)
    state = {name: value.contiguous() for name, value in open_clip.CLIP(**TINY).state_dict().items()}
    save_file(state, folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": TINY, "preprocess_cfg": {}}))


def made() -> list[dict[str, Any]]:
    draw = np.random.default_rng(0)
    pairs = []
    for number in range(90):
        image, caption = drawing(draw)
        language = (
            "ein Bild von einem Haus in der Stadt und nichts anderes" if number % 9 == 0 else "this picture shows"
        )
        pairs.append(made_dataset.pair(f"{language} {caption}", image))
    return [*pairs, made_dataset.pair("this picture is one that has gone away", None, download_status="4xx")]


def publish(folder: Path, part_rows: int = 40, pairs: Any = None, **signal: Any) -> tuple[Dataset, dict[str, Any]]:
    folder.mkdir(exist_ok=True)
    targets = folder / "targets"
    targets.mkdir(exist_ok=True)
    draw = np.random.default_rng(1)
    for number in range(5):
        image = cv2.imdecode(np.frombuffer(drawing(draw)[0], np.uint8), cv2.IMREAD_COLOR)
        cv2.imwrite(str(targets / f"{number}.png"), image)
    options = {"kind": "near_target", "targets": str(targets), "clusters": CLUSTERS, **signal}
    if not (folder / "clip").exists():
        write_model(folder / "clip")
    signals = [options, "text", "language", {"kind": "clip", "model": str(folder / "clip"), "batch": 30}]
    changes = {"signals": signals, "dedup": [], "select": {"preset": "datacomp-image-based"}, "jobs": []}
    return made_dataset.publish(folder, pairs or made(), changes, part_rows=part_rows)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[Dataset, dict[str, Any]]:
    return publish(tmp_path_factory.mktemp("near"))


def model_of(dataset: Dataset) -> tuple[Path, dict[str, Any]]:
    (folder,) = Path(dataset.path("models")).iterdir()
    return folder, json.loads((folder / "manifest.json").read_text())


def query(dataset: Dataset, sql: str) -> list[Any]:
    with connect(dataset) as connection:
        return connection.sql(sql).fetchall()


def vectors_of(dataset: Dataset, name: str) -> np.ndarray:
    parts = [dataset.read_part(part)["vector"].combine_chunks() for part in dataset.tables_named(name)[0].parts]
    flat = pa.concat_arrays([part.drop_null() for part in parts])
    return flat.flatten().to_numpy().reshape(len(flat), -1)


def test_the_preset_keeps_what_the_definition_keeps(published: Any) -> None:
    dataset, _ = published
    folder, manifest = model_of(dataset)
    centroids = np.load(folder / "centroids.npy")
    assert manifest["pairs"] == 90
    assert manifest["targets"] == 5
    assert manifest["clusters"] == len(centroids)
    hit, ahead = argmax(vectors_of(dataset, "evaluation"), centroids)
    assert ahead.min() > 0.0002
    assert set(np.flatnonzero(np.load(folder / "near.npy"))) == set(hit)
    assert len(set(hit)) == manifest["near"] < len(centroids)
    found = query(
        dataset, "SELECT vector, near_target, lang, kept FROM samples JOIN embeddings_clip USING (uid) ORDER BY uid"
    )
    known = [row for row in found if row[0] is not None]
    cluster, ahead = argmax(np.array([row[0] for row in known]), centroids)
    clear = np.flatnonzero(ahead > 0.0002)
    assert len(clear) > 60
    for place in clear:
        _, near, lang, kept = known[place]
        assert near == (cluster[place] in hit)
        assert kept == (near and lang == "en")
    assert 5 < sum(row[3] for row in known) < 85
    assert [row[1] for row in found if row[0] is None] == [None]


def test_neither_the_cut_of_the_pool_nor_the_form_of_the_targets_changes_anything(
    tmp_path: Path, published: Any
) -> None:
    np.save(tmp_path / "targets.npy", vectors_of(published[0], "evaluation"))
    dataset, _ = publish(tmp_path, part_rows=25, targets=[str(tmp_path / "targets.npy")])
    ours, theirs = model_of(dataset), model_of(published[0])
    assert [file["sha256"] for file in ours[1]["files"]] == [file["sha256"] for file in theirs[1]["files"]]
    sql = "SELECT uid, near_target FROM samples ORDER BY uid"
    assert query(dataset, sql) == query(published[0], sql)


def test_clusters_are_as_many_as_asked_for_and_another_seed_gives_others() -> None:
    unit = near_target.unit(rows(crowded(2_000, 64, 1))["embeddings_clip"])[0]
    made = [partitions.train(lambda places: unit[places], 2_000, 100, seed).centroids for seed in (0, 0, 1)]
    assert all(95 <= len(centroids) <= 105 for centroids in made)
    assert np.array_equal(made[0], made[1])
    assert not np.array_equal(made[0][:90], made[2][:90])


def test_pairs_that_come_later_are_judged_by_the_same_clusters(tmp_path: Path, monkeypatch: Any) -> None:
    dataset, _ = publish(tmp_path, pairs=made()[:50])
    model = {file.name: file.read_bytes() for file in model_of(dataset)[0].iterdir()}
    dataset.remove("latest.json")
    monkeypatch.setattr(clusters, "kmeans", None)
    dataset, _ = publish(tmp_path)
    assert {file.name: file.read_bytes() for file in model_of(dataset)[0].iterdir()} == model
    assert query(dataset, "SELECT count(near_target) FROM samples") == [(90,)]


def test_verify_looks_at_the_clusters_too(published: Any) -> None:
    dataset, _ = published
    assert list(verify(dataset)) == []
    folder, manifest = model_of(dataset)
    path, told = folder / "near.npy", (folder / "manifest.json")
    content, about = path.read_bytes(), told.read_bytes()
    path.write_bytes(content[:-1])
    (difference,) = verify(dataset)
    assert difference[:2] == (manifest["files"][1]["path"], manifest["files"][1]["sha256"])
    path.write_bytes(content)
    told.unlink()
    assert list(verify(dataset)) == [(f"models/{folder.name}/manifest.json", "a model", "missing")]
    told.write_bytes(about)


def test_what_cannot_be_clustered_is_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="either `targets`"):
        publish(tmp_path, targets=[])
    with pytest.raises(InputError, match="there is no table 'embeddings_clip_b'"):
        publish(tmp_path, embeddings="clip_b")
    with pytest.raises(InputError, match=r"signals.near_target.targets: .* holds no file"):
        publish(tmp_path, targets=[str(tmp_path / "list.csv")])
    with pytest.raises(InputError, match="no clusters"):
        publish(tmp_path, targets=[], checkpoint=str(tmp_path))
    with pytest.raises(InputError, match=r"90 pairs have a vector in embeddings_clip .* fewer than 91"):
        publish(tmp_path, clusters=91)
    np.save(tmp_path / "zero.npy", np.zeros((3, 24), np.float32))
    with pytest.raises(InputError, match=r"no image or vector in .*zero.npy"):
        publish(tmp_path, targets=[str(tmp_path / "zero.npy")])
    np.save(tmp_path / "wide.npy", np.ones((3, 25), np.float32))
    with pytest.raises(InputError, match=r"wide.npy has vectors of 25 numbers"):
        publish(tmp_path, targets=[str(tmp_path / "wide.npy")])
