"""Copies of a picture are near each other by SSCD, and different pictures are not."""

import io

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image, ImageDraw

from vlmdata import recipe, signals
from vlmdata.signals import sscd


def scene(seed: int) -> Image.Image:
    """A drawing of shapes that is like no other seed's."""
    random = np.random.default_rng(seed)
    image = Image.new("RGB", (320, 240), tuple(random.integers(150, 255, 3).tolist()))
    draw = ImageDraw.Draw(image)
    for _ in range(14):
        x, y, w, h = random.integers(0, 260), random.integers(0, 190), *random.integers(20, 110, 2)
        shape = [draw.ellipse, draw.rectangle][random.integers(2)]
        shape((int(x), int(y), int(x + w), int(y + h)), fill=tuple(random.integers(0, 255, 3).tolist()))
    return image


def jpeg(image: Image.Image, quality: int = 95) -> bytes:
    out = io.BytesIO()
    image.save(out, "JPEG", quality=quality)
    return out.getvalue()


def vectors(contents: list[bytes | None], **options) -> pa.Table:
    chosen = recipe.SscdSignal(kind="sscd", model="distilled", batch=4, **options)
    lengths = [content and len(content) for content in contents]
    starts = np.concatenate([[0], np.cumsum([length or 0 for length in lengths])])[:-1].tolist()
    offsets = [start if length else None for start, length in zip(starts, lengths, strict=True)]
    stored = b"".join(content for content in contents if content)
    sizes = [content and Image.open(io.BytesIO(content)).size for content in contents]
    rows = pa.table(
        {
            "uid": [f"{n:032x}" for n in range(len(contents))],
            "width": pa.array([size and size[0] for size in sizes], pa.int32()),
            "height": pa.array([size and size[1] for size in sizes], pa.int32()),
            "offset": pa.array(offsets, pa.int64()),
            "length": pa.array(lengths, pa.int64()),
        }
    )
    wanted = signals.Measurement(chosen, sscd.schemas(chosen), {})
    (table,) = signals.measure_part(rows, lambda o, n: stored[o : o + n], [wanted], {}, {}).values()
    return table


def test_copies_are_near_and_others_are_not():
    scenes = [scene(seed) for seed in range(3)]
    half = [image.resize((160, 120)) for image in scenes]
    poor = [jpeg(image, 30) for image in scenes]
    table = vectors([*map(jpeg, scenes), *map(jpeg, half), *poor])
    assert table.schema == sscd.schemas(recipe.SscdSignal(kind="sscd"))["embeddings_sscd"]
    found = np.array(table["vector"].to_pylist(), np.float32)
    assert np.linalg.norm(found, axis=1) == pytest.approx(np.ones(9), abs=2e-3)
    cosine = found @ found.T
    of = np.arange(9) % 3
    same = of[:, None] == of
    assert cosine[same].min() > cosine[~same].max() + 0.1
    assert cosine[same].min() > 0.75


def test_where_no_image_is_stored_there_is_no_vector_and_a_batch_changes_nothing():
    content = jpeg(scene(5))
    table = vectors([None, content, None, *(jpeg(scene(n)) for n in range(4))])
    assert table["vector"].is_valid().to_pylist() == [False, True, False, True, True, True, True]
    assert vectors([content])["vector"][0] == table["vector"][1]


def test_a_second_model_has_its_own_table_and_identity():
    named = recipe.SscdSignal(kind="sscd", model="distilled", name="small")
    assert list(sscd.schemas(named)) == ["embeddings_sscd_small"]
    assert sscd.identity(named) != sscd.identity(recipe.SscdSignal(kind="sscd"))
