"""Codes of patches: learned the same each time, kept, and never random."""

import logging
from pathlib import Path

import numpy as np
import photo_pairs
import pytest
import torch
from transformers import FlavaImageCodebook, FlavaImageCodebookConfig

from vlmdata.errors import InputError
from vlmdata.train import codebook, data


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> data.Index:
    folder = tmp_path_factory.mktemp("codes")
    return data.index([photo_pairs.shard(folder / "a.tar", 16, broken="brick2")], folder)


def test_centres_are_learned_once_and_the_same_each_time(
    index: data.Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    centres = codebook.learn(index, 16, 0, tmp_path / "one")
    assert centres.shape == (16, 1280)
    np.testing.assert_allclose(np.linalg.norm(centres, axis=1), 1, rtol=1e-5)
    assert (centres == codebook.learn(index, 16, 0, tmp_path / "two")).all()
    monkeypatch.setattr(codebook, "cells", lambda pictures: pytest.fail("computed again"))
    assert (centres == codebook.learn(index, 16, 0, tmp_path / "one")).all()


def test_a_code_is_the_nearest_centre_of_its_cell_and_a_broken_picture_has_none(
    index: data.Index, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    centres = codebook.learn(index, 16, 0, tmp_path)
    with caplog.at_level(logging.WARNING):
        codes, whole = codebook.coded(index, codebook.nearest(centres), "16", tmp_path)
    assert "brick2 cannot be decoded and is skipped" in caplog.text
    assert [index.uids[n] for n in np.flatnonzero(~whole)] == ["brick2"]
    picture = data.image(index, 0)
    assert picture is not None
    vectors = codebook.cells([picture])[0]
    expected = [min(range(16), key=lambda c: float(((vector - centres[c]) ** 2).sum())) for vector in vectors]
    assert codes[0].tolist() == expected
    assert len(np.unique(codes[whole])) == 16
    monkeypatch.setattr(codebook, "cells", lambda pictures: pytest.fail("computed again"))
    again, _ = codebook.coded(index, codebook.nearest(centres), "16", tmp_path)
    assert (again == codes).all()


def test_k_means_finds_groups_and_refuses_too_few_vectors() -> None:
    rng = np.random.default_rng(0)
    groups = np.eye(4, 8)[rng.integers(4, size=200)] + rng.normal(0, 0.01, (200, 8))
    vectors = (groups / np.linalg.norm(groups, axis=1, keepdims=True)).astype(np.float32)
    found = codebook.kmeans(vectors, 4, 0)
    np.testing.assert_allclose(sorted((found @ np.eye(8)[:, :4]).argmax(1)), range(4))
    with pytest.raises(InputError, match="5 codes cannot be learned from 3 patches"):
        codebook.kmeans(vectors[:3], 5, 0)


def test_flavas_codebook_gives_its_own_codes(index: data.Index, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = FlavaImageCodebookConfig(hidden_size=8, vocab_size=32, num_blocks_per_group=1)
    model = FlavaImageCodebook(config).eval()
    model.save_pretrained(tmp_path / "book")
    encode, codes = codebook.flava_codebook(str(tmp_path / "book"), 7)
    picture = data.image(index, 0)
    assert picture is not None
    assert codes == 32
    found = encode([picture, picture])
    assert found.shape == (2, 49)
    pixels = torch.from_numpy(data.square(picture, 56)).permute(2, 0, 1)[None] / 255
    assert (found[0] == model.get_codebook_indices(pixels * 0.8 + 0.1).flatten().numpy()).all()


def test_flavas_codebook_runs_where_the_model_does(
    index: data.Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    FlavaImageCodebook(FlavaImageCodebookConfig(hidden_size=8, vocab_size=32)).save_pretrained(tmp_path / "book")
    monkeypatch.setattr(codebook, "torch_device", lambda: ("meta", False))  # a device that every machine has
    encode, _ = codebook.flava_codebook(str(tmp_path / "book"), 7)
    picture = data.image(index, 0)
    assert picture is not None
    with pytest.raises(NotImplementedError, match="meta tensor"):  # all was computed there; nothing can come back
        encode([picture])


def test_a_codebook_without_weights_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    with pytest.raises(InputError, match="holds no image codebook"):
        codebook.flava_codebook(str(tmp_path / "nothing"), 7)
    FlavaImageCodebook(FlavaImageCodebookConfig(hidden_size=8, vocab_size=32)).save_pretrained(tmp_path / "book")
    weights = load_file(tmp_path / "book" / "model.safetensors")
    weights.pop("blocks.output.conv.weight")
    save_file(weights, tmp_path / "book" / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match="would be random"):
        codebook.flava_codebook(str(tmp_path / "book"), 7)
