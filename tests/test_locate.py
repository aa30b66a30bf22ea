"""`vlmdata locate`: heat lies where the phrase is, boxes are in the picture's pixels, frames have their times."""

import io
import itertools
import json
import tarfile
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from made_videos import video
from photos import photo
from typer.testing import CliRunner

from vlmdata import lite
from vlmdata.cli import app
from vlmdata.errors import InputError
from vlmdata.locate import _of_vit, boxes, cells, locate, looking
from vlmdata.recipe import ContrastiveJob, MaskedJob
from vlmdata.train import checkpoint
from vlmdata.train.contrastive import build
from vlmdata.train.loop import train

COLOURS = {"red": (220, 30, 30), "blue": (30, 30, 220), "green": (30, 200, 30), "yellow": (240, 230, 20)}
NAMELESS = (128, 128, 128)
TEXT = {"context_length": 8, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
VIT = {"image_size": 32, "layers": 2, "width": 64, "head_width": 16, "patch_size": 8}
CNN = {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "head_width": 16}
TOWERS = {"vit": VIT, "averaged": VIT | {"pool_type": "avg"}, "cnn": CNN}


def scene(*colours: str, height: int = 48) -> np.ndarray:
    """uint8 RGB: squares of some noise in these colours, from left to right."""
    width = 48 // len(colours) if height == 48 else height
    noise = np.random.default_rng(len("".join(colours))).integers(-20, 20, (height, width * len(colours), 3))
    plain = np.concatenate([np.full((height, width, 3), COLOURS.get(colour, NAMELESS)) for colour in colours], 1)
    return (plain + noise).clip(0, 255).astype(np.uint8)


def png(picture: np.ndarray) -> bytes:
    return cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))[1].tobytes()


@pytest.fixture(scope="module")
def trainings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Models that have seen each colour, alone and beside grey, and never two of them."""
    folder = tmp_path_factory.mktemp("scenes")
    scenes = [colours for name in COLOURS for colours in ((name,), (name, "grey"), ("grey", name))]
    with tarfile.open(folder / "a.tar", "w") as out:
        for number, colours in enumerate(scenes):
            members = {"jpg": png(scene(*colours)), "txt": "".join(set(colours) - {"grey"}).encode()}
            for extension, member in members.items():
                info = tarfile.TarInfo(f"{number}.{extension}")
                info.size = len(member)
                out.addfile(info, io.BytesIO(member))
    for name, vision in TOWERS.items():
        job = ContrastiveJob(
            kind="train", model={"embed_dim": 32, "vision_cfg": vision, "text_cfg": TEXT}, steps=40, batch=12, lr=3e-3
        )
        train(job, {"train": [str(folder / "a.tar")]}, str(folder / name))
    return {name: folder / name for name in TOWERS}


@pytest.mark.parametrize("name", TOWERS)
def test_the_heat_of_a_colour_lies_on_its_half(trainings: dict[str, Path], name: str) -> None:
    objective = checkpoint.load(trainings[name])
    for left, other in itertools.permutations(COLOURS, 2):
        heat, _ = looking(objective, left)(scene(left, other))
        assert heat.shape == (48, 48)
        assert heat[:, :24].mean() > heat[:, 24:].mean(), f"{left}, {other}"


def test_a_long_picture_is_looked_at_from_end_to_end(trainings: dict[str, Path]) -> None:
    objective = checkpoint.load(trainings["vit"])
    strip = scene("blue", "blue", "red", "blue", height=64)
    for picture in (strip, strip.swapaxes(0, 1)):
        heat, _ = looking(objective, "red")(picture)
        assert heat.shape == picture.shape[:2]
        along = heat if heat.shape[1] > 64 else heat.T
        assert along[:, 128:192].mean() > max(along[:, :128].mean(), along[:, 192:].mean())
    with pytest.raises(InputError, match="more than 16 times"):
        looking(objective, "red")(np.zeros((10, 200, 3), np.uint8))


def test_the_command_gives_boxes_in_pixels_and_a_heat_map(trainings: dict[str, Path], tmp_path: Path) -> None:
    picture = tmp_path / "wide.png"
    picture.write_bytes(png(cv2.resize(scene("blue", "red"), (2400, 2400), interpolation=cv2.INTER_NEAREST)))
    out = tmp_path / "heat.png"
    run = CliRunner().invoke(app, ["locate", str(trainings["vit"]), str(picture), "red", "--out", str(out)])
    assert run.exit_code == 0, run.output
    found = json.loads(run.stdout)
    assert found["heat_map"] == str(out)
    assert cv2.imread(str(out)).shape == (1024, 1024, 3)
    x0, y0, x1, y1 = found["boxes"][0]["box"]
    assert x0 > 800  # of 2400, not of the 1024 that were looked at
    assert x1 == 2400
    assert y1 - y0 > 1500
    assert 0.5 < found["boxes"][0]["score"] <= 1
    assert 0.5 < found["score"] <= 1


def test_of_a_video_the_best_frames_are_told_with_their_times(trainings: dict[str, Path], tmp_path: Path) -> None:
    film = video(tmp_path / "film.mp4", frames=120, scene_frames=30)  # a reddish second, dark green, yellow-white, blue
    found = locate(trainings["vit"], film, "blue", tmp_path / "heat.png")
    assert found["frames"][0]["time"] == 3.0
    assert {frame["time"] for frame in found["frames"]} == {0.0, 1.0, 2.0, 3.0}
    scores = [frame["score"] for frame in found["frames"]]
    assert scores == sorted(scores, reverse=True)
    assert (tmp_path / "heat.png").stat().st_size > 100


def test_a_cell_alone_passes_the_towers_own_pooling(trainings: dict[str, Path]) -> None:
    """Where tokens are averaged the picture's vector is the mean of its cells' before they are normalised."""
    visual = build(
        ContrastiveJob(kind="train", model={"embed_dim": 32, "vision_cfg": TOWERS["averaged"], "text_cfg": TEXT})
    ).clip.visual.eval()
    pixels = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(_of_vit(visual, pixels).mean(0), visual(pixels)[0], atol=1e-5, rtol=1e-5)
        assert cells(visual, pixels).shape == (4, 4, 32)


def test_the_embedded_scorer_finds_a_real_thing(tmp_path: Path) -> None:
    cat = cv2.resize(photo("chelsea"), (224, 224))
    both = np.concatenate([cv2.resize(photo("coffee"), (224, 224)), cat], 1)

    class Trained:
        heads = lite.load().heads

    heat, _ = looking(Trained(), "a cat")(both)
    assert heat.shape == (224, 448)
    assert heat[:, 224:].mean() > heat[:, :224].mean()
    heat, _ = looking(Trained(), "a cup of coffee")(both)
    assert heat[:, :224].mean() > heat[:, 224:].mean()


def test_boxes_are_the_areas_that_stand_out() -> None:
    heat = np.zeros((100, 200), np.float32)
    heat[10:30, 20:60] = 0.5
    heat[60:90, 120:180] = 0.9
    heat[0, 0] = 0.8  # too small
    assert boxes(heat, 2.0) == [
        {"box": [240, 120, 360, 180], "score": pytest.approx(0.9)},
        {"box": [40, 20, 120, 60], "score": pytest.approx(0.5)},
    ]
    assert boxes(np.full((10, 10), 0.3, np.float32)) == []


@pytest.mark.parametrize(
    ("file", "phrase", "said"),
    [
        ("no.png", "red", "no.png: No such file"),
        ("x.png", "red", "not an image"),
        ("x.mp4", "red", "x.mp4: "),
        ("no.mp4", "red", "No such file"),
        ("x.png", " ", "blank"),
    ],
)
def test_what_cannot_be_looked_at_is_refused(
    trainings: dict[str, Path], tmp_path: Path, file: str, phrase: str, said: str
) -> None:
    for name in ("x.png", "x.mp4"):
        (tmp_path / name).write_bytes(b"just words, no picture and no film")
    with pytest.raises(InputError, match=said):
        locate(trainings["vit"], tmp_path / file, phrase, tmp_path / "heat.png")


def test_a_model_that_is_not_contrastive_is_refused() -> None:
    class Trained:
        job = MaskedJob(kind="train", objective="masked")

    with pytest.raises(InputError, match="no cells of a model of the objective masked: it needs one of contrastive"):
        looking(Trained(), "red")
