"""The embedded scorer: towers equal to their libraries' own, rows independent of each other, heads that are loaded
safely, and scores that tell right captions from wrong ones."""

import json
from importlib.resources import files
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from vlmdata import lite, towers
from vlmdata.errors import InputError


def photographs() -> list[np.ndarray]:
    """A flower and a Chinese pagoda, from scikit-learn."""
    folder = files("sklearn.datasets") / "images"
    return [cv2.imread(str(folder / name))[..., ::-1] for name in ("flower.jpg", "china.jpg")]


def drawings(n: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [cv2.resize(rng.integers(0, 255, (5, 7, 3), np.uint8), (90 + i, 70)) for i in range(n)]


def test_the_sentence_tower_equals_that_of_transformers() -> None:
    from transformers import AutoModel, AutoTokenizer

    folder = towers.weights()["minilm-l6"].parent
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    for text in ("a cat", "The “Curves” dialog, été 猫", "a long caption " * 60, ""):
        with torch.inference_mode():
            tokens = tokenizer([text], return_tensors="pt", truncation=True, max_length=128)
            pooled = torch.nn.functional.normalize(model(**tokens).last_hidden_state.mean(1), dim=-1)
        np.testing.assert_allclose(towers.sentences().embed([text]), pooled.numpy(), atol=2e-6)


def test_folding_the_norms_does_not_change_the_vision_tower() -> None:
    from efficientnet_lite_pytorch import EfficientNet

    net = EfficientNet.from_name("efficientnet-lite0")
    net.load_state_dict(torch.load(towers.weights()["efficientnet-lite0"], weights_only=True))
    net.eval()
    picture = cv2.resize(photographs()[0], (224, 224))
    pixels = torch.from_numpy((picture - towers.MEAN) / towers.STD).permute(2, 0, 1)[None]
    cells = towers.vision().cells([picture])
    with torch.inference_mode():
        np.testing.assert_allclose(cells[0].T.reshape(1280, 7, 7), net.extract_features(pixels)[0], atol=1e-3)
        np.testing.assert_allclose(towers.vision().logits(cells.mean(1)), net(pixels), atol=1e-3)


def test_a_row_is_the_same_bytes_whatever_stands_beside_it() -> None:
    model = lite.load()
    pictures = drawings(19)
    together = model.encode_images(pictures)
    assert (model.encode_images(pictures[:1])[0] == together[0]).all()
    assert (model.encode_images(pictures[::-1])[::-1] == together).all()
    texts = [f"a caption of {'many ' * (3 * i)} words" for i in range(37)]
    vectors = model.encode_texts(texts)
    assert (model.encode_texts(texts[5:6])[0] == vectors[5]).all()
    assert (model.encode_texts(texts[::-1])[::-1] == vectors).all()


def test_vectors_are_of_unit_length_and_of_one_type() -> None:
    model = lite.load()
    for vectors in (model.encode_images(drawings(2)), model.encode_texts(["a", ""])):
        assert vectors.dtype == np.float32
        assert vectors.shape == (2, lite.DIM)
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert model.encode_images([]).shape == model.encode_texts([]).shape == (0, lite.DIM)


def test_right_captions_score_higher_than_wrong_ones() -> None:
    model = lite.load()
    scores = model.encode_images(photographs()) @ model.encode_texts(["a flower", "a temple with a tower"]).T
    assert scores[0, 0] > scores[0, 1] + 0.05
    assert scores[1, 1] > scores[1, 0] + 0.05


def test_the_baseline_knows_a_flower_from_a_tower() -> None:
    model = lite.load()
    features = torch.from_numpy(lite.image_features(photographs()))
    vectors = lite.conse(features, model.heads)
    texts = torch.from_numpy(towers.sentences().embed(["a flower", "a temple with a tower"])) - model.heads.centre
    scores = vectors @ texts.T
    assert scores[0, 0] > scores[0, 1]
    assert scores[1, 1] > scores[1, 0]


def test_the_identity_follows_the_heads(tmp_path: Path) -> None:
    original = lite.identity()
    assert {"efficientnet-lite0", "minilm-l6", "heads", "preprocessing"} <= original.keys()
    lite.save(lite.load().heads, tmp_path)
    again = lite.load(tmp_path)
    texts = ["a red car"]
    assert (again.encode_texts(texts) == lite.load().encode_texts(texts)).all()  # half precision is written only once
    assert lite.identity(tmp_path)["heads"] == original["heads"]
    weights = load_file(tmp_path / "heads.safetensors")
    weights["centre"] = weights["centre"] + np.float16(1)
    save_file(weights, tmp_path / "heads.safetensors")
    assert lite.identity(tmp_path)["heads"] != original["heads"]


@pytest.mark.parametrize("broken", ["config.json", "heads.safetensors"])
def test_broken_heads_are_refused_with_their_folder(tmp_path: Path, broken: str) -> None:
    lite.save(lite.load().heads, tmp_path)
    (tmp_path / broken).write_bytes(b"\x80\x04cos\nsystem\n")
    with pytest.raises(InputError, match=tmp_path.name):
        lite.load(tmp_path)


def test_the_committed_heads_are_a_few_megabytes_and_say_their_length() -> None:
    folder = Path(lite.__file__).parent.parent / "models" / "lite"
    assert (folder / "heads.safetensors").stat().st_size < 6_000_000
    assert json.loads((folder / "config.json").read_text())["dim"] == lite.DIM
