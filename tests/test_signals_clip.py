"""CLIP scores and embeddings, by a small open_clip model with random weights through the path of every other model."""

import json
import shutil
from pathlib import Path
from typing import Any

import made_dataset
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vlmdata import recipe
from vlmdata.errors import InputError
from vlmdata.signals import clip, openclip
from vlmdata.signals.pictures import Pictures

TINY = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A local directory as open_clip writes them: configuration and weights."""
    import open_clip
    import torch
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("a model")
    torch.manual_seed(1)
    model = open_clip.CLIP(**TINY)
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / "open_clip_model.safetensors")
    preprocess = {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25], "interpolation": "bicubic"}
    config = {"model_cfg": TINY, "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    return folder


def options(**changes: Any) -> recipe.ClipSignal:
    return recipe.ClipSignal.model_validate({"kind": "clip", **changes})


def pixels(n: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (40 + 3 * k, 50, 3), np.uint8) for k in range(n)]


def rows(captions: list[str | None]) -> pa.Table:
    uids = pa.array([f"{k:032x}" for k in range(len(captions))], pa.string())
    return pa.table({"uid": uids, "caption": pa.array(captions, pa.string())})


def test_scores_and_vectors_are_those_of_open_clip(directory: Path) -> None:
    import open_clip
    import torch
    from PIL import Image

    pictures, captions = pixels(5), ["a dog", "a cat", "", "a dog", "snow " * 40]
    chosen = options(model=str(directory), batch=2)
    found = clip.measure(rows(captions), Pictures(pictures, np.arange(5)), chosen)
    assert {name: table.schema for name, table in found.items()} == clip.schemas(chosen)
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{directory}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{directory}")
    with torch.inference_mode():
        images = torch.stack([preprocess(Image.fromarray(p)) for p in pictures])
        left = model.eval().encode_image(images, normalize=True).numpy()
        right = model.encode_text(tokenizer(captions), normalize=True).numpy()
    np.testing.assert_allclose(found["clip"]["clip_score"].to_numpy(), (left * right).sum(axis=1), atol=1e-5)
    vectors = np.stack(found["embeddings_clip"]["vector"].to_pylist())
    np.testing.assert_allclose(vectors, left, atol=1e-3)
    np.testing.assert_allclose(np.linalg.norm(vectors.astype(np.float64), axis=1), 1, atol=1e-3)
    assert found["clip"]["clip_score"][0] != found["clip"]["clip_score"][1]


def test_a_row_has_the_same_values_whatever_stands_beside_it(directory: Path) -> None:
    pictures, chosen = pixels(3), options(model=str(directory), batch=4)
    together = clip.measure(rows(["a", "b", None, "c d"]), Pictures(pictures, np.array([0, 1, 1, 2])), chosen)
    alone = clip.measure(rows(["c d"]), Pictures(pictures[2:], np.array([0])), chosen)
    for table in ("clip", "embeddings_clip"):
        assert together[table].column(1)[3] == alone[table].column(1)[0]
    assert together["clip"]["clip_score"].to_pylist()[2] is None
    assert together["embeddings_clip"]["vector"][1] == together["embeddings_clip"]["vector"][2]


def test_each_distinct_image_and_caption_is_encoded_once(monkeypatch: pytest.MonkeyPatch, directory: Path) -> None:
    seen: list[Any] = []

    def encode(items: list[Any]) -> np.ndarray:
        seen.extend(items)
        return np.full((len(items), 24), 24**-0.5, np.float32)

    monkeypatch.setattr(clip, "_encoder", lambda *options: clip.Encoder(encode, encode))
    pictures = Pictures(pixels(2), np.array([0, 1, 0, 1]))
    found = clip.measure(rows(["a", "b", "a", "b"]), pictures, options(model=str(directory), batch=1))
    assert len(seen) == 4
    assert found["clip"]["clip_score"].to_pylist() == pytest.approx([1.0] * 4)


def test_a_second_model_has_its_own_tables_and_columns(directory: Path) -> None:
    chosen = options(model=str(directory), name="b")
    found = clip.measure(rows([]), Pictures([], np.zeros(0, np.int64)), chosen)
    assert found["clip_b"].column_names == ["uid", "clip_score_b"]
    assert found["embeddings_clip_b"].schema.field("vector").type == pa.list_(pa.float16(), 24)


def test_an_architecture_with_random_weights_is_the_same_each_time() -> None:
    chosen = options(model="ViT-S-32-alt", pretrained="random", batch=2)
    assert clip.dimension(chosen) == 256
    pictures = Pictures(pixels(2), np.array([0, 1]))
    first = clip.measure(rows(["a dog", "a cat"]), pictures, chosen)
    assert first["embeddings_clip"].schema.field("vector").type == pa.list_(pa.float16(), 256)
    again = openclip.load(chosen).encode_images(pictures.pixels)
    np.testing.assert_array_equal(
        np.stack(first["embeddings_clip"]["vector"].to_pylist()).astype(np.float16), again.astype(np.float16)
    )


def test_a_checkpoint_file_is_loaded_and_known_by_its_bytes(directory: Path, tmp_path: Path) -> None:
    import open_clip
    import torch

    model = open_clip.create_model("ViT-S-32-alt")
    path, copy = tmp_path / "checkpoint.pt", tmp_path / "copy.pt"
    torch.save(model.state_dict(), path)
    copy.write_bytes(path.read_bytes())
    chosen = options(model="ViT-S-32-alt", pretrained=str(path))
    pictures = pixels(1)
    random = openclip.load(options(model="ViT-S-32-alt", pretrained="random")).encode_images(pictures)
    loaded = openclip.load(chosen).encode_images(pictures)
    assert np.abs(random - loaded).max() > 1e-3
    assert clip.identity(chosen) == clip.identity(options(model="ViT-S-32-alt", pretrained=str(copy)))
    assert clip.identity(chosen) != clip.identity(options(model="ViT-S-32-alt", pretrained="random"))
    before = clip.identity(options(model=str(directory)))
    assert set(before["weights"]) == {"open_clip_model.safetensors"}
    assert before["preprocessing"] == {
        "size": [32, 32], "mode": "RGB", "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25], "interpolation": "bicubic",
        "resize_mode": "shortest", "fill_color": 0,
    }  # fmt: skip


def test_other_preprocessing_architecture_or_tokenizer_is_another_model(tmp_path: Path, directory: Path) -> None:
    seen = []
    for number, change in enumerate(
        [
            {},
            {"preprocess_cfg": {"mean": [0.4, 0.5, 0.5], "std": [0.25, 0.25, 0.25], "interpolation": "bicubic"}},
            {"preprocess_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25], "interpolation": "bilinear"}},
            {"model_cfg": {**TINY, "quick_gelu": True}},
            {"model_cfg": {**TINY, "text_cfg": {**TINY["text_cfg"], "context_length": 12}}},
        ]
    ):
        folder = tmp_path / str(number)
        shutil.copytree(directory, folder)
        config = json.loads((directory / "open_clip_config.json").read_text())
        (folder / "open_clip_config.json").write_text(json.dumps(config | change))
        seen.append(json.dumps(clip.identity(options(model=str(folder))), sort_keys=True))
    assert len(set(seen)) == len(seen)
    assert seen[0] == json.dumps(clip.identity(options(model=str(directory))), sort_keys=True), "at another place"


def test_the_identity_is_what_open_clip_does(directory: Path) -> None:
    import open_clip

    for chosen, name, tag in (
        (options(model="ViT-B-32", pretrained="laion2b_s34b_b79k"), "ViT-B-32", None),
        (options(model=str(directory)), f"local-dir:{directory}", None),
    ):
        model = open_clip.create_model(name, pretrained=tag)
        expected = json.loads(json.dumps(open_clip.get_model_preprocess_cfg(model)))
        assert clip.identity(chosen)["preprocessing"] == expected
    squashed = clip.identity(options(model="ViT-B-16-SigLIP", pretrained="webli"))
    assert squashed["preprocessing"]["resize_mode"] == "squash"
    assert squashed["preprocessing"]["mean"] == [0.5, 0.5, 0.5]


def test_weights_never_run_with_an_activation_that_they_were_not_trained_with() -> None:
    with pytest.raises(InputError, match=r"with QuickGELU: write model: ViT-B-32-quickgelu$"):
        clip.identity(options(model="ViT-B-32", pretrained="openai"))
    assert clip.identity(options(model="ViT-B-32-quickgelu", pretrained="openai"))["weights"]["pretrained"] == "openai"


def test_bf16_is_asked_for_on_a_cpu_and_stays_near(directory: Path) -> None:
    assert clip.device(options(model=str(directory))) == "cpu fp32"
    assert clip.device(options(model=str(directory), precision="bf16")) == "cpu bf16"
    pictures, captions = Pictures(pixels(6), np.arange(6)), rows(["a dog", "a cat", "snow", "a red car", "x", "y z"])
    scores = [
        clip.measure(captions, pictures, options(model=str(directory), precision=p))["clip"]["clip_score"].to_numpy()
        for p in ("fp32", "bf16")
    ]
    assert 0 < np.abs(scores[0] - scores[1]).max() < 0.01


def test_two_models_stand_side_by_side_in_one_run(tmp_path: Path, directory: Path) -> None:
    captions = ["a red apple on a table", "two dogs play in the park", "words"]
    made = [made_dataset.pair(text, made_dataset.picture(n)) for n, text in enumerate(captions)]
    other = {"kind": "clip", "name": "b", "model": str(directory)}
    changes = {
        "signals": ["text", {"kind": "clip", "after": ["telling"]}, other],
        "dedup": [{"kind": "semantic", "embeddings": "clip_b"}],
        "select": {"rules": {"telling": "words > 1", "both": "clip_score >= -1 and clip_score_b >= -1"}},
    }
    dataset, manifest = made_dataset.publish(tmp_path, made, changes)
    samples = pq.read_table(dataset.path(manifest["samples"][0]["path"])).to_pylist()
    assert sorted((row["caption"], row["clip_score"] is None, row["clip_score_b"] is None) for row in samples) == [
        (captions[0], False, False), (captions[1], False, False), (captions[2], True, False)
    ]  # fmt: skip
    assert {row["reason"] for row in samples} <= {None, "telling", "duplicate: semantic"}
    lengths = {}
    for name, model in (("clip", options()), ("clip_b", options(model=str(directory), name="b"))):
        for table in (name, f"embeddings_{name}"):
            about = dataset.tables_named(table)[0].about
            assert about["model"] == clip.identity(model)
            assert about["devices"] == ["cpu fp32"]
        (part,) = dataset.tables_named(f"embeddings_{name}")[0].parts
        lengths[name] = max(len(vector) for vector in dataset.read_part(part)["vector"].to_pylist() if vector)
    assert lengths == {"clip": 384, "clip_b": 24}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model": "ViT-B-33", "pretrained": "x"}, "did you mean 'ViT-B-32'"),
        ({"model": "ViT-B-32"}, "needs `pretrained`"),
        ({"model": "ViT-B-32", "pretrained": "no/such/file.pt"}, "no file no/such/file.pt"),
        ({"model": "local-dir:no/such"}, "no open_clip configuration"),
    ],
)
def test_a_model_that_is_not_there_is_refused_before_anything_is_loaded(changes: dict[str, str], says: str) -> None:
    for function in (clip.schemas, clip.identity, clip.dimension):
        with pytest.raises(InputError, match=says):
            function(options(**changes))


def test_what_open_clip_cannot_load_is_one_readable_line(tmp_path: Path, directory: Path) -> None:
    broken = tmp_path / "broken.pt"
    broken.write_bytes(b"no checkpoint")
    for changes in ({"pretrained": str(broken)}, {"pretrained": "no_such_tag"}):
        with pytest.raises(InputError, match="cannot be loaded") as caught:
            openclip.load(options(model="ViT-S-32-alt", **changes))
        assert len(str(caught.value).splitlines()) == 1
    (tmp_path / "open_clip_config.json").write_text((directory / "open_clip_config.json").read_text())
    broken.unlink()
    with pytest.raises(InputError, match="cannot be loaded"):
        openclip.load(options(model=str(tmp_path)))


def test_a_worker_finds_a_model_from_another_folder(
    tmp_path: Path, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lite").mkdir()  # which is not meant
    (tmp_path / "checkpoint.pt").write_bytes(b"x")
    monkeypatch.chdir(directory.parent)
    wanted = clip.absolute(options(model=directory.name))
    assert clip.absolute(options(model=f"local-dir:{directory.name}")) == wanted
    monkeypatch.chdir(tmp_path)
    assert clip.identity(wanted) == clip.identity(options(model=str(directory)))
    of_file = clip.absolute(options(model="ViT-B-32", pretrained="checkpoint.pt"))
    assert of_file.pretrained == str(tmp_path / "checkpoint.pt")
    for other in (options(model="lite"), options(model="ViT-B-32", pretrained="laion2b_s34b_b79k")):
        assert clip.absolute(other) == other
