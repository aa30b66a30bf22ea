"""Heads over embeddings, in the shapes that LAION published, against torch's own layers."""

import pickle
from pathlib import Path
from typing import Any

import made_dataset
import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from vlmdata import recipe
from vlmdata.errors import InputError
from vlmdata.signals import aesthetic


class Published(nn.Module):
    """improved-aesthetic-predictor's module: its weights are called layers.0, 2, 4, 6 and 7."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(width, 1024), nn.Dropout(0.2), nn.Linear(1024, 128), nn.Dropout(0.2), nn.Linear(128, 64),
            nn.Dropout(0.1), nn.Linear(64, 16), nn.Linear(16, 1),
        )  # fmt: skip


@pytest.fixture
def mlp() -> nn.Module:
    torch.manual_seed(0)
    return Published(768).eval()


def options(head: Path, **changes: Any) -> recipe.AestheticSignal:
    return recipe.AestheticSignal(kind="aesthetic", head=str(head), **changes)


def rows(vectors: np.ndarray) -> pa.Table:
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.astype(np.float16).ravel()), vectors.shape[1])
    return pa.table({"uid": [f"{n:032x}" for n in range(len(vectors))], "embeddings_clip": column})


def vectors(n: int, width: int) -> np.ndarray:
    drawn = np.random.default_rng(0).normal(size=(n, width)).astype(np.float32)
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


def test_the_five_layers_give_what_torch_gives(tmp_path: Path, mlp: nn.Module) -> None:
    torch.save(mlp.state_dict(), tmp_path / "sac.pth")
    save_file(mlp.state_dict(), tmp_path / "sac.safetensors")
    np.savez(tmp_path / "sac.npz", **{name: value.numpy() for name, value in mlp.state_dict().items()})
    given = vectors(300, 768).astype(np.float16).astype(np.float32)
    with torch.inference_mode():
        expected = mlp.layers(nn.functional.normalize(torch.from_numpy(given), dim=-1))[:, 0].numpy()
    for file in ("sac.pth", "sac.safetensors", "sac.npz"):
        found = aesthetic.measure(rows(given), None, options(tmp_path / file))["aesthetic"]
        np.testing.assert_allclose(found["aesthetic_score"].to_numpy(), expected, atol=1e-6)
    halved = aesthetic.measure(rows(given / 2), None, options(tmp_path / "sac.npz"))["aesthetic"]
    np.testing.assert_allclose(halved["aesthetic_score"].to_numpy(), expected, atol=1e-3)
    alone = aesthetic.measure(rows(given).slice(299), None, options(tmp_path / "sac.npz"))["aesthetic"]
    assert alone["aesthetic_score"][0] == found["aesthetic_score"][299]


def test_one_linear_layer_and_one_with_an_activation(tmp_path: Path) -> None:
    layer, given = nn.Linear(512, 1), vectors(5, 512)
    save_file(layer.state_dict(), tmp_path / "linear.safetensors")
    found = aesthetic.measure(rows(given), None, options(tmp_path / "linear.safetensors", name="v1"))["aesthetic_v1"]
    expected = given @ layer.weight.detach().numpy()[0] + layer.bias.detach().numpy()
    np.testing.assert_allclose(found["aesthetic_score_v1"].to_numpy(), expected, atol=1e-3)
    two = nn.Sequential(nn.Linear(512, 8), nn.ReLU(), nn.Linear(8, 1))
    save_file(two.state_dict(), tmp_path / "two.safetensors")
    found = aesthetic.measure(rows(given), None, options(tmp_path / "two.safetensors", activation="relu"))["aesthetic"]
    with torch.inference_mode():
        expected = two(torch.from_numpy(given))[:, 0].numpy()
    np.testing.assert_allclose(found["aesthetic_score"].to_numpy(), expected, atol=1e-3)


def test_layers_go_by_number_not_by_letter(tmp_path: Path) -> None:
    many = nn.Sequential(*(nn.Linear(4, 4) for _ in range(11)), nn.Linear(4, 1))
    save_file(many.state_dict(), tmp_path / "many.safetensors")
    given = vectors(3, 4).astype(np.float16).astype(np.float32)
    found = aesthetic.measure(rows(given), None, options(tmp_path / "many.safetensors"))["aesthetic"]
    with torch.inference_mode():
        expected = many(nn.functional.normalize(torch.from_numpy(given), dim=-1))[:, 0].numpy()
    np.testing.assert_allclose(found["aesthetic_score"].to_numpy(), expected, atol=1e-6)


def test_a_head_for_other_embeddings_is_refused_with_both_widths(tmp_path: Path, mlp: nn.Module) -> None:
    save_file(mlp.state_dict(), tmp_path / "head.safetensors")
    with pytest.raises(InputError, match=r"length 768, those of embeddings_clip have length 512"):
        aesthetic.measure(rows(vectors(2, 512)), None, options(tmp_path / "head.safetensors"))


class Mischief:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("touched"),))


def test_no_file_runs_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.pth").write_bytes(pickle.dumps({"weight": Mischief()}))
    torch.save({"weight": Mischief()}, tmp_path / "b.pth")
    np.savez(tmp_path / "c.npz", weight=np.array([Mischief()], object))
    for name in ("a.pth", "b.pth", "c.npz"):
        with pytest.raises(InputError, match="cannot be read"):
            aesthetic.identity(options(tmp_path / name))
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize(
    ("state", "says"),
    [
        ({"a.weight": (4, 8), "b.weight": (1, 5)}, "8 to 4, 5 to 1"),
        ({"a.weight": (2, 8)}, "8 to 2"),
        ({"a.weight": (1, 8), "norm.scale": (8,)}, "also holds norm.scale"),
        ({"a.weight": (1, 8, 3, 3)}, "no linear layer's"),
        ({}, "its layers are none"),
    ],
)
def test_what_is_no_head_is_refused(tmp_path: Path, state: dict[str, Any], says: str) -> None:
    np.savez(tmp_path / "head.npz", **{name: np.zeros(shape, np.float32) for name, shape in state.items()})
    with pytest.raises(InputError, match=says):
        aesthetic.identity(options(tmp_path / "head.npz"))
    with pytest.raises(InputError, match="no file"):
        aesthetic.identity(options(tmp_path / "gone.npz"))


@pytest.mark.parametrize("name", ["head.pth", "head.npz", "head.safetensors"])
def test_an_empty_file_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    with pytest.raises(InputError, match=rf"{name} cannot be read: \S"):
        aesthetic.identity(options(tmp_path / name))


def test_a_state_dict_inside_a_checkpoint_is_read_and_what_holds_none_is_told(tmp_path: Path) -> None:
    layer, given = nn.Linear(4, 1), vectors(3, 4)
    scores = []
    for name, content in (("plain.pth", layer.state_dict()), ("inside.pth", {"state_dict": layer.state_dict()})):
        torch.save(content, tmp_path / name)
        scores.append(aesthetic.measure(rows(given), None, options(tmp_path / name))["aesthetic"])
    assert scores[0].equals(scores[1])
    for number, content in enumerate(([1], torch.zeros(3), {"optimizer": {"weight": torch.zeros(1, 4)}})):
        torch.save(content, tmp_path / f"{number}.pth")
        with pytest.raises(InputError, match="holds no state dict"):
            aesthetic.identity(options(tmp_path / f"{number}.pth"))


def test_it_is_measured_behind_the_embeddings_that_it_reads(tmp_path: Path) -> None:
    save_file(nn.Linear(384, 1).state_dict(), tmp_path / "head.safetensors")
    head = {"kind": "aesthetic", "head": str(tmp_path / "head.safetensors")}
    made = [made_dataset.pair(text, made_dataset.picture(n)) for n, text in enumerate(["a red apple", "word"])]
    changes = {
        # named before what it reads
        "signals": [head, "text", {"kind": "clip", "after": ["telling"]}],
        "dedup": [],
        "select": {"rules": {"telling": "words > 1", "pretty": "aesthetic_score > -100"}},
    }
    dataset, manifest = made_dataset.publish(tmp_path, made, changes)
    (samples,) = (dataset.read_part(part["path"]) for part in manifest["samples"])
    by_caption = dict(zip(samples["caption"].to_pylist(), samples["aesthetic_score"].to_pylist(), strict=True))
    assert by_caption["word"] is None
    (part,) = dataset.tables_named("embeddings_clip")[0].parts
    vector = next(v for v in dataset.read_part(part)["vector"].to_pylist() if v)
    weights = torch.nn.Linear(384, 1)
    weights.load_state_dict(load_file(tmp_path / "head.safetensors"))
    expected = weights(nn.functional.normalize(torch.tensor(vector, dtype=torch.float32), dim=0)).item()
    assert by_caption["a red apple"] == pytest.approx(expected, abs=1e-5)
    with pytest.raises(InputError, match=r"no table 'embeddings_clip_b' to read; did you mean 'embeddings_clip'"):
        made_dataset.publish(tmp_path, made, changes | {"signals": [head | {"embeddings": "clip_b"}, "text", "clip"]})
