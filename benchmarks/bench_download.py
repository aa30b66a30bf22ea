"""CPU time an image of the download, beside img2dataset's own Downloader on the same pictures in the same run.

Both run in this process, in turn, from a static server in another one; start-up and imports are apart. Ours has all its
protections on. Pictures: cuts of 400 to 1200 pixels from the photographs in the demo's site, as JPEGs.
"""

import functools
import hashlib
import http.server
import io
import multiprocessing
import random
import resource
import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image

from vlmdata.download import download_part
from vlmdata.recipe import Consent, Download
from vlmdata.schemas import table_schema

COUNT, ROUNDS, SIZE, QUALITY = 1000, 3, 256, 95
PHOTOS = Path(".cache/demo/site/gimp-help-en/images")


def make_pictures(folder: Path) -> None:
    draw = random.Random(0)
    photos = [path for path in sorted(PHOTOS.rglob("*.jpg")) if min(Image.open(path).size) >= 250]
    for number in range(COUNT):
        photo = Image.open(draw.choice(photos)).convert("RGB")
        width, height = draw.randint(400, 1200), draw.randint(400, 1200)
        scale = max(width / photo.width, height / photo.height)
        photo = photo.resize((int(photo.width * scale) + 1, int(photo.height * scale) + 1), Image.Resampling.LANCZOS)
        photo.crop((0, 0, width, height)).save(folder / f"{number:05d}.jpg", quality=draw.choice([75, 85, 90, 95]))


def serve(folder: str, ready: "multiprocessing.Queue[int]") -> None:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder))
    ready.put(server.server_port)
    server.serve_forever()


def cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def stock(urls: list[str], folder: Path) -> None:
    from img2dataset.downloader import Downloader
    from img2dataset.resizer import Resizer
    from img2dataset.writer import WebDatasetSampleWriter

    shard = folder / "shard.arrow"
    table = pa.table({"url": urls})
    with pa.ipc.new_file(shard, table.schema) as writer:
        writer.write_table(table)
    resizer = Resizer(SIZE, "keep_ratio", True, encode_quality=QUALITY)
    Downloader(WebDatasetSampleWriter, resizer, 32, False, False, str(folder), ["url"], 10, len(urls), 5, "sha256",
               None, "jpg", 0, None, None).download_shard((0, str(shard)))  # fmt: skip


def ours(urls: list[str], folder: Path, host: str) -> pa.Table:
    rows = [{"uid": hashlib.md5(url.encode()).hexdigest(), "url": url, "caption": "c", "captions": ["c"], "source": "s",
             "caption_from": "alt", "occurrences": 1} for url in urls]  # fmt: skip
    options = Download(size=SIZE, quality=QUALITY, allow_hosts=[host])
    pairs = pa.Table.from_pylist(rows, table_schema("pairs"))
    return download_part(pairs, str(folder / "ours.tar"), "ours.tar", options, Consent(), {})[0]


def psnr(images: pa.Table, urls: list[str], folder: Path) -> np.ndarray:
    """Of each stored picture against the stock one, in dB."""
    import json
    import tarfile

    theirs = {}
    with tarfile.open(folder / "00000.tar") as tar:
        for member in tar:
            if member.name.endswith(".json"):
                about = json.load(tar.extractfile(member))
                theirs[about["url"]] = tar.extractfile(member.name.replace(".json", ".jpg")).read()
    stored = (folder / "ours.tar").read_bytes()
    values = []
    for url, offset, length in zip(urls, images["offset"].to_pylist(), images["length"].to_pylist(), strict=True):
        a, b = (
            np.asarray(Image.open(io.BytesIO(data)), np.float64)
            for data in (stored[offset : offset + length], theirs[url])
        )
        values.append(10 * np.log10(255**2 / np.mean((a - b) ** 2)))
    return np.array(values)


def main() -> None:
    if not PHOTOS.is_dir():
        sys.exit("the demo's data is needed: make setup")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        site = folder / "site"
        site.mkdir()
        make_pictures(site)
        ready: multiprocessing.Queue[int] = multiprocessing.Queue()
        server = multiprocessing.Process(target=serve, args=(str(site), ready), daemon=True)
        server.start()
        host = f"127.0.0.1:{ready.get()}"
        urls = [f"http://{host}/{path.name}" for path in sorted(site.iterdir())]
        stock(urls[:20], folder)
        ours(urls[:20], folder, host)
        spent: dict[str, list[float]] = {"img2dataset": [], "vlmdata": []}
        for _ in range(ROUNDS):
            for who, work in (("img2dataset", stock), ("vlmdata", functools.partial(ours, host=host))):
                before = cpu_seconds()
                images = work(urls, folder)
                spent[who].append((cpu_seconds() - before) / COUNT * 1000)
        assert images is not None
        assert images["download_status"].to_pylist() == ["success"] * COUNT
        for who, values in spent.items():
            spread = f"{min(values):.2f} to {max(values):.2f}"
            print(f"{who:<12} {statistics.median(values):6.2f} ms of CPU an image ({spread})")
        ratio = statistics.median(spent["img2dataset"]) / statistics.median(spent["vlmdata"])
        values = psnr(images, urls, folder)
        print(f"ratio        {ratio:6.2f}")
        print(f"PSNR against img2dataset's picture: median {np.median(values):.1f} dB, worst {values.min():.1f} dB")
        server.terminate()


if __name__ == "__main__":
    main()
