"""The pool of recipes/compare-demo.yaml, made of the demo's packages: real pairs, many of them spoilt on purpose.

    python recipes/demo_data.py fetch --all
    python recipes/compare_data.py              from .cache/demo into .cache/compare

OUT/pool and OUT/trusted are folders of pairs; OUT/test.tar and OUT/validation.tar hold clean pairs of other subjects.
OUT/truth.csv says of every file of the pool what it is; nothing but a look at the outcome may read it.

Only images whose sha256 ends in an odd digit take part: the embedded scorer `lite` was trained on the others. What
belongs to one subject (all drawings of a title, an emoji of both vendors, a figure) goes to one part alone, so neither
a picture nor a caption of the tests is right anywhere in the pool.
"""

import argparse
import csv
import hashlib
import io
import json
import shutil
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from vlmdata.sources.page import read_page

TEST, VALIDATION, TRUSTED = 0.22, 0.12, 0.1  # shares of subjects; the trusted ones are of what the tests leave
SHUFFLED = 0.4  # of the pool's pairs have another pair's caption, of the same package
JUNK, POPULAR, COPIES = 650, 60, 24  # junk pairs; images that are repeated; repetitions of one, at most
LARGEST = 1024  # the longer side, pixels: some drawings have 200 megapixels
POSTED = ("{}", "{} | free pictures", "{} - download", "Buy {} online", "{} (HD)", "{} wallpaper", "Pin: {}", "{} 2024")
NAMES = ("IMG_{:04d}.JPG", "DSC{:05d}", "spacer{}.gif", "banner {}x60", "btn_{}.png", "thumb-{}", "image {}", "icon{}")
WORDS = ("click here", "buy now", "next page", "read more", "menu", "ok", "advertisement", "loading")


@dataclass(frozen=True)
class Pair:
    package: str
    subject: str
    caption: str
    content: bytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", type=Path, default=Path(".cache/demo"))
    parser.add_argument("--out", type=Path, default=Path(".cache/compare"))
    arguments = parser.parse_args()
    if not (arguments.demo / "openclipart-all").is_dir():
        raise SystemExit(f"{arguments.demo} is not there: python recipes/demo_data.py fetch --all")
    aside = arguments.out.with_name(arguments.out.name + ".aside")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    counts = make(list(pairs(arguments.demo)), aside)
    shutil.rmtree(arguments.out, ignore_errors=True)
    aside.rename(arguments.out)
    print(json.dumps(counts, indent=1))


def pairs(demo: Path) -> Iterator[Pair]:
    """Every image once, of those that `lite` has not seen."""
    for path in sorted((demo / "openclipart-all").rglob("*.png")):
        about = json.loads(path.with_suffix(".json").read_text("utf-8"))
        title, keywords = about["title"], about.get("keywords", [])
        # A title of a word or two is told with the first keywords, as on sites of such drawings.
        caption = title if len(title.split()) > 2 else ", ".join([title, *keywords[:3]])
        yield from _unseen("openclipart", title.lower().rstrip(" 0123456789"), caption, path)
    for vendor in ("google", "twitter"):
        for path in sorted((demo / "emoji" / vendor).glob("*.png")):
            about = json.loads(path.with_suffix(".json").read_text("utf-8"))
            if "skin tone" not in about["title"]:
                caption = ", ".join([about["title"], *about.get("keywords", [])[:2]])
                yield from _unseen("emoji", about["title"], caption, path)
    seen = set()
    manual = demo / "site" / "gimp-help-en"
    for page in sorted(manual.glob("*.html")):
        for image in read_page(page.read_text("utf-8"), "http://manual/", {}, "").images:
            path = manual / image.url.removeprefix("http://manual/")
            if path.is_file() and path not in seen and path.suffix in (".png", ".jpg") and "callouts" not in image.url:
                seen.add(path)
                yield from _unseen("gimp", path.stem, image.caption, path)


def _unseen(package: str, subject: str, caption: str, path: Path) -> Iterator[Pair]:
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest()[-1] in "13579bdf":
        yield Pair(package, subject, caption, content)


def make(found: list[Pair], out: Path) -> dict[str, int]:
    """Write the four parts; how many pairs of each kind there are."""
    often = Counter((pair.package, pair.caption.lower()) for pair in found)
    sets: dict[str, list[Pair]] = {"test": [], "validation": [], "trusted": [], "pool": []}
    taken = set()
    for pair in found:
        share = _share(pair.package, pair.subject)
        part = "test" if share < TEST else "validation" if share < TEST + VALIDATION else "pool"
        if part != "pool":
            # A test has each subject and each caption once, and no caption that many drawings have (authors' names).
            if often[pair.package, pair.caption.lower()] > 4 or {pair.subject, pair.caption.lower()} & taken:
                continue
            taken |= {pair.subject, pair.caption.lower()}
        elif _share("trusted", pair.subject) < TRUSTED and often[pair.package, pair.caption.lower()] <= 4:
            part = "trusted"
        sets[part].append(pair)
    for name in ("test", "validation"):
        _write_tar(out / f"{name}.tar", sets[name])
    for number, pair in enumerate(sets["trusted"]):
        _write(out / "trusted", number, small(pair.content), pair.caption)
    rows = list(spoilt(sets["pool"], np.random.default_rng(0)))
    for number, place in enumerate(np.random.default_rng(1).permutation(len(rows))):
        _write(out / "pool", number, rows[place][2], rows[place][1])
        rows[place] = (f"{number:06d}.{_ending(rows[place][2])}", *rows[place])
    with open(out / "truth.csv", "w", newline="", encoding="utf-8") as file:
        written = csv.writer(file)
        written.writerow(["file", "kind", "caption"])
        written.writerows(sorted(row[:3] for row in rows))
    return {name: len(some) for name, some in sets.items() if name != "pool"} | dict(Counter(row[1] for row in rows))


def spoilt(pool: list[Pair], random: np.random.Generator) -> Iterator[tuple[str, str, bytes]]:
    """(kind, caption, image) of the pool: right, shuffled, copies of both, and junk."""
    captions = [pair.caption for pair in pool]
    wrong = set[int]()
    for package in sorted({pair.package for pair in pool}):
        members = np.array([place for place, pair in enumerate(pool) if pair.package == package])
        chosen = random.permutation(members)[: round(SHUFFLED * len(members))]
        for place, other in zip(chosen, np.roll(chosen, 1), strict=True):
            captions[place] = pool[other].caption
        wrong |= {int(place) for place in chosen if captions[place] != pool[place].caption}
    for place, pair in enumerate(pool):
        yield "shuffled" if place in wrong else "right", captions[place], small(pair.content)
    for place in random.permutation(len(pool))[:POPULAR]:
        kind = "copy of shuffled" if place in wrong else "copy of right"
        for number in range(1, int(random.integers(2, COPIES)) + 1):
            caption = POSTED[number % len(POSTED)].format(captions[place])
            yield kind, caption, again(pool[place].content, random, as_it_is=number % 3 == 0)
    for number in range(JUNK):
        yield "junk", *junk(number, pool[int(random.integers(len(pool)))].content, random)


def junk(number: int, real: bytes, random: np.random.Generator) -> tuple[str, bytes]:
    """A caption that says nothing, and a flat colour, noise, a button, a tiny icon or a real picture."""
    name = NAMES[number % len(NAMES)].format(int(random.integers(10_000)))
    word = WORDS[int(random.integers(len(WORDS)))]
    caption = word if number % 3 == 0 else name
    kind = number % 5
    if kind == 0:
        picture = np.full((int(random.integers(40, 400)), 300, 3), random.integers(0, 256, 3), np.uint8)
    elif kind == 1:
        picture = random.integers(0, 256, (int(random.integers(60, 300)), 240, 3), np.uint8)
    elif kind == 2:
        picture = np.full((60, 240, 3), random.integers(60, 256, 3), np.uint8)
        cv2.putText(picture, word.upper(), (12, 40), cv2.FONT_HERSHEY_SIMPLEX, 0.9, (0, 0, 0), 2)
    else:
        picture = decoded(real)
        if kind == 3:
            picture = cv2.resize(picture, (int(random.integers(12, 40)),) * 2, interpolation=cv2.INTER_AREA)
    return caption, _encoded(".png", picture)


def again(content: bytes, random: np.random.Generator, as_it_is: bool) -> bytes:
    """The same picture as another site has it: the same bytes, or a little smaller and as a JPEG."""
    if as_it_is:
        return small(content)
    picture = decoded(content)
    size = [max(16, round(side * random.uniform(0.7, 1.0))) for side in picture.shape[1::-1]]
    picture = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    return _encoded(".jpg", picture, int(random.integers(60, 95)))


def small(content: bytes) -> bytes:
    """As it came, unless it is larger than LARGEST."""
    picture = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    return content if max(picture.shape[:2]) <= LARGEST else _encoded(".png", decoded(content))


def decoded(content: bytes, shorter: int | None = None) -> np.ndarray:
    """BGR with transparency on white, not larger than LARGEST, its shorter side at most `shorter`."""
    picture = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    if picture.dtype == np.uint16:
        picture = (picture >> 8).astype(np.uint8)
    if picture.ndim == 2:
        picture = cv2.cvtColor(picture, cv2.COLOR_GRAY2BGR)
    scale = min(1.0, LARGEST / max(picture.shape[:2]), (shorter or LARGEST) / min(picture.shape[:2]))
    if scale < 1:
        size = [max(1, round(side * scale)) for side in picture.shape[1::-1]]
        picture = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    if picture.shape[2] == 4:
        alpha = picture[..., 3:] / np.float32(255)
        picture = (picture[..., :3] * alpha + 255 * (1 - alpha) + 0.5).astype(np.uint8)
    return picture


def _share(*words: str) -> float:
    """A number in [0, 1) that hangs on the words alone."""
    digest = hashlib.blake2b("\0".join(words).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def _encoded(ending: str, picture: np.ndarray, quality: int = 95) -> bytes:
    return cv2.imencode(ending, picture, [cv2.IMWRITE_JPEG_QUALITY, quality] if ending == ".jpg" else [])[1].tobytes()


def _ending(content: bytes) -> str:
    return "jpg" if content[:2] == b"\xff\xd8" else "png"


def _write(folder: Path, number: int, content: bytes, caption: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / f"{number:06d}.{_ending(content)}").write_bytes(content)
    (folder / f"{number:06d}.json").write_text(json.dumps({"caption": caption}, ensure_ascii=False), "utf-8")


def _write_tar(path: Path, chosen: list[Pair]) -> None:
    """A WebDataset tar with images as the download stores them."""
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for number, pair in enumerate(chosen):
            picture = _encoded(".jpg", decoded(pair.content, 256))
            for ending, content in (("jpg", picture), ("txt", pair.caption.encode())):
                member = tarfile.TarInfo(f"{number:06d}.{ending}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


if __name__ == "__main__":
    main()
