"""Folders of images with captions beside them."""

import json
import os
from pathlib import Path

import pyarrow as pa
import pytest
from PIL import Image

from vlmdata import sources
from vlmdata.download.local import local_path
from vlmdata.errors import InputError
from vlmdata.local_files import Refused, open_below
from vlmdata.recipe import FolderSource


def picture(path: Path, **about: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), "red").save(path, format="PNG")
    if about:
        path.with_suffix(".json").write_text(json.dumps(about), "utf-8")
    return path


def rows(path: Path, **options: object) -> list[dict[str, object]]:
    source = FolderSource.model_validate({"kind": "folder", "name": "pics", "path": str(path), **options})
    sources.check(source)
    batches = list(sources.read(source, str(path)))
    assert all(batch.schema.equals(sources.ROWS) for batch in batches)
    return pa.Table.from_batches(batches, sources.ROWS).to_pylist()


def test_captions_come_from_json_keys_then_text_in_the_order_of_paths(tmp_path: Path) -> None:
    picture(tmp_path / "b/2.png", title="Muffin", description="A muffin. It has raisins.", keywords=["food", 7, "cake"])
    picture(tmp_path / "b/1.png", caption="a\0 red \u00a0 box\n", title="other", license="https://x/l?sig=abc#f")
    picture(tmp_path / "a.png").with_suffix(".txt").write_text("\ufeffFrom  a text\nfile", "utf-8")
    picture(tmp_path / "c.PNG", title="Boot", description="Worn by a hiker.")
    picture(tmp_path / "d.png", description="Only described")
    found = rows(tmp_path)
    assert [(row["url"], row["caption"], row["caption_from"]) for row in found] == [
        ("pics:/a.png", "From a text file", "file:txt"),
        ("pics:/b/1.png", "a red box", "caption"),
        ("pics:/b/2.png", "A muffin", "description"),
        ("pics:/c.PNG", "Boot. Worn by a hiker", "title+description"),
        ("pics:/d.png", "Only described", "description"),
    ]
    assert found[2]["context"] == "food, cake"
    assert found[1]["license"] == "https://x/l"
    assert {row["source"] for row in found} == {"pics"}
    assert all(row["fetch_url"] is None and row["crawled_at"] is None for row in found)


@pytest.mark.parametrize(
    ("description", "caption"),
    [
        ("muffin", "Blueberry muffin"),
        ("Word", "Blueberry muffin"),
        ("see http://example.org/ now", "Blueberry muffin"),
        (" ".join(["history"] * 30), "Blueberry muffin"),
        ("A big blueberry muffin. More", "A big blueberry muffin"),
    ],
)
def test_a_description_is_used_only_where_it_adds_something_short(
    tmp_path: Path, description: str, caption: str
) -> None:
    picture(tmp_path / "a.png", title="Blueberry muffin", description=description)
    assert rows(tmp_path)[0]["caption"] == caption


def test_limit_takes_the_first_paths(tmp_path: Path) -> None:
    for number in range(5):
        picture(tmp_path / f"{number}.png", caption=f"number {number}")
    assert [row["caption"] for row in rows(tmp_path, limit=2)] == ["number 0", "number 1"]


def test_names_of_any_kind_lead_back_to_their_file(tmp_path: Path) -> None:
    names = [b"a b%20#?.png", "é✓.png".encode(), b"\xff\xfe.png", b"-rf \n.png"]
    for name in names:
        picture(tmp_path / os.fsdecode(name)).with_suffix(".txt").write_text("some words")
    found = rows(tmp_path)
    assert {local_path(str(row["url"]), {"pics": str(tmp_path)}) for row in found} == {
        (os.fsencode(tmp_path), name) for name in names
    }
    assert all(str(row["url"]).isascii() and " " not in str(row["url"]) for row in found)


def test_nothing_outside_the_folder_is_read(tmp_path: Path) -> None:
    secret = picture(tmp_path / "secret.png", caption="secret")
    picture(tmp_path / "root/own.png", caption="own")
    (tmp_path / "root/out.png").symlink_to(secret)
    (tmp_path / "root/out.txt").write_text("leads out")
    (tmp_path / "root/loop").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "root/in.png").symlink_to(tmp_path / "root/own.png")
    (tmp_path / "root/in.txt").write_text("stays in")
    os.mkfifo(tmp_path / "root/pipe.png")
    assert [row["caption"] for row in rows(tmp_path / "root")] == ["stays in", "own"]
    inside = os.fsencode(tmp_path / "root/own.png")
    for path in (
        b"../secret.png",
        b"out.png",
        b"/etc/passwd",
        inside,
        b"a\0b",
        "\ud800.png",
        b"pipe.png",
        b"",
        b"loop",
    ):
        with pytest.raises(Refused) as refusal:
            open_below(tmp_path / "root", path)
        assert refusal.value.status == "blocked", path
    for path in (b"none.png", b"own.png/none.png"):
        with pytest.raises(Refused, match="no such file") as refusal:
            open_below(tmp_path / "root", path)
        assert refusal.value.status == "4xx"
    with open_below(tmp_path / "root", "in.png") as file:
        assert file.read(4) == b"\x89PNG"


@pytest.mark.parametrize("ending", ["txt", "json"])
def test_captions_beside_images_are_no_links_out_of_the_folder(
    tmp_path: Path, ending: str, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "secret").write_text('{"caption": "a secret of this machine"}')
    (tmp_path / "root/below").mkdir(parents=True)
    for name, target in (("a", tmp_path / "secret"), ("b", Path("../../secret")), ("c", Path("own"))):
        picture(tmp_path / f"root/below/{name}.png").with_suffix(f".{ending}").symlink_to(target)
    (tmp_path / "root/below/own").write_text('{"caption": "its own words"}')
    (caption,) = [row["caption"] for row in rows(tmp_path / "root")]
    assert "its own words" in str(caption)
    assert "pics: 2 files with captions are not read: the path leads out of the source's folder" in caplog.messages


def test_hostile_caption_files_cost_their_image_only(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    picture(tmp_path / "deep.png").with_suffix(".json").write_text("[" * 100_000)
    picture(tmp_path / "list.png").with_suffix(".json").write_text('["a caption"]')
    picture(tmp_path / "type.png").with_suffix(".json").write_text('{"caption": {"a": 1}, "title": 5}')
    picture(tmp_path / "huge.png").with_suffix(".txt").write_text("word " * 300_000)
    os.mkfifo(picture(tmp_path / "pipe.png").with_suffix(".txt"))
    picture(tmp_path / "bytes.png").with_suffix(".txt").write_bytes(b"caf\xe9 \x00 noir")
    picture(tmp_path / "half.png").with_suffix(".json").write_text('{"caption": "half \\ud83d of it"}')
    assert [row["caption"] for row in rows(tmp_path)] == ["caf\ufffd noir", "half \ufffd of it"]
    for reason in ("more than 1,000,000 bytes", "not a plain file"):
        assert f"pics: 1 files with captions are not read: {reason}" in caplog.messages


def test_a_folder_that_gives_no_pairs_is_refused_with_the_reason(tmp_path: Path) -> None:
    for path, reason in ((tmp_path / "none", "there is no folder"), (tmp_path, "holds no image")):
        with pytest.raises(InputError, match=reason):
            rows(path)
    picture(tmp_path / "a.png")
    with pytest.raises(InputError, match=r"none of the 1 images .* has a caption"):
        rows(tmp_path)
