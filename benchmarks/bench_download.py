"""CPU time an image of the download, beside img2dataset's own Downloader on the same pictures in the same run.

Both run in this process, in turn, from a static server in another one (nginx where it is installed); start-up and
imports are apart. Ours has all its protections on. Pictures: cuts of 400 to 1200 pixels from the photographs in the
demo's site, as JPEGs. `bucketed` is ours as several processes do it, element by element in this one: rows scattered
into buckets of hosts, each bucket fetched and stored aside, parts put together. Then the peak of memory of 1,000 and of
10,000 small images, each in a process of its own.

`bench_download.py COUNT ROUNDS` for other numbers than 3000 and 5; `bench_download.py memory` for the memory alone.
"""

import functools
import hashlib
import http.server
import io
import json
import multiprocessing
import random
import resource
import shutil
import socket
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image

from vlmdata.dataset import Dataset, unguarded
from vlmdata.download import Terms, download_part
from vlmdata.pipelines import fetch
from vlmdata.recipe import Consent, Download
from vlmdata.schemas import table_schema

SIZE, QUALITY = 256, 95
SMALL = 1000, 10_000
PARTS = 8
PHOTOS = Path(".cache/demo/site/gimp-help-en/images")
NGINX = """
daemon off; master_process off; pid {folder}/nginx.pid; error_log {folder}/error.log;
events {{ worker_connections 1024; }}
http {{
  access_log off; sendfile on; tcp_nopush on; keepalive_requests 100000; default_type image/jpeg;
  client_body_temp_path {folder}/t1; proxy_temp_path {folder}/t2; fastcgi_temp_path {folder}/t3;
  uwsgi_temp_path {folder}/t4; scgi_temp_path {folder}/t5;
  server {{ listen 127.0.0.1:{port}; root {site}; }}
}}
"""


def make_pictures(folder: Path, count: int) -> None:
    draw = random.Random(0)
    photos = [path for path in sorted(PHOTOS.rglob("*.jpg")) if min(Image.open(path).size) >= 250]
    for number in range(count):
        photo = Image.open(draw.choice(photos)).convert("RGB")
        width, height = draw.randint(400, 1200), draw.randint(400, 1200)
        scale = max(width / photo.width, height / photo.height)
        photo = photo.resize((int(photo.width * scale) + 1, int(photo.height * scale) + 1), Image.Resampling.LANCZOS)
        photo.crop((0, 0, width, height)).save(folder / f"{number:05d}.jpg", quality=draw.choice([75, 85, 90, 95]))


def serve_slowly(folder: str, port: int) -> None:
    """Python's own static server."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: object) -> None:
            pass

    http.server.ThreadingHTTPServer(("127.0.0.1", port), functools.partial(Quiet, directory=folder)).serve_forever()


@contextmanager
def serve(site: Path) -> Iterator[str]:
    """`127.0.0.1:port` of a static server of the files in `site`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    nginx = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    server: subprocess.Popen[bytes] | multiprocessing.Process
    if nginx:
        folder = site.parent / "nginx"
        folder.mkdir(exist_ok=True)
        (folder / "conf").write_text(NGINX.format(folder=folder, port=port, site=site))
        server = subprocess.Popen(
            [nginx, "-p", str(folder), "-e", str(folder / "error.log"), "-c", str(folder / "conf")]
        )
    else:
        print("nginx is not installed (apt-get install nginx-light): Python's own server instead")
        server = multiprocessing.Process(target=serve_slowly, args=(str(site), port), daemon=True)
        server.start()
    try:
        for _ in range(100):
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except OSError:
                time.sleep(0.1)
        yield f"127.0.0.1:{port}"
    finally:
        server.terminate()


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


def make_pairs(urls: list[str]) -> pa.Table:
    rows = [{"uid": hashlib.md5(url.encode()).hexdigest(), "url": url, "caption": "c", "captions": ["c"], "source": "s",
             "caption_from": "alt", "occurrences": 1} for url in urls]  # fmt: skip
    return pa.Table.from_pylist(rows, table_schema("pairs"))


def ours(urls: list[str], folder: Path, host: str) -> pa.Table:
    options = Download(size=SIZE, quality=QUALITY, allow_hosts=[host])
    return download_part(make_pairs(urls), str(folder / "ours.tar"), "ours.tar", Terms(options, Consent(), {}))[0]


def bucketed(urls: list[str], folder: Path, host: str) -> pa.Table:
    dataset = Dataset(str(folder / "data"))
    options = Download(size=SIZE, quality=QUALITY, allow_hosts=[host])
    work = fetch.Work(dataset.absolute, unguarded, "k", options, Consent(), {}, "", "", None, {}, "run")
    size = -(-len(urls) // PARTS)
    slices = [urls[start : start + size] for start in range(0, len(urls), size)]
    parts = [dataset.write_part("pairs", "k", f"000001-{n}", make_pairs(its), {}) for n, its in enumerate(slices)]
    for part in parts:
        fetch.Scattered(work, PARTS)(part)
    each = fetch.Bucketed(work, tuple(part.name for part in parts), 1, 2 * size, PARTS, 1)
    files = [file for number in range(PARTS) for file in each(number)]
    for element in enumerate(parts):
        fetch.Assembled(work, files)(element)
    images = pa.concat_tables(dataset.read_part(f"images/k/{part.name}.parquet") for part in parts)
    shutil.rmtree(folder / "data")
    return images


def psnr(images: pa.Table, urls: list[str], folder: Path) -> np.ndarray:
    """Of each stored picture against the stock one, in dB."""
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
        if a.shape == b.shape:  # where a side falls on a half, they round to the even number, and ours up
            values.append(10 * np.log10(255**2 / np.mean((a - b) ** 2)))
    return np.array(values)


def speed(count: int, rounds: int) -> None:
    """Prints CPU time an image of both, their ratio, and the difference between their pictures."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        site = folder / "site"
        site.mkdir()
        make_pictures(site, count)
        with serve(site) as host:
            urls = [f"http://{host}/{path.name}" for path in sorted(site.iterdir())]
            stock(urls[:20], folder)
            ours(urls[:20], folder, host)
            sides = {
                "img2dataset": stock,
                "vlmdata": functools.partial(ours, host=host),
                "bucketed": functools.partial(bucketed, host=host),
            }
            spent: dict[str, list[float]] = {who: [] for who in sides}
            images = pa.table({})
            for number in range(rounds):
                for who in sorted(sides, reverse=number % 2 == 1):
                    before = cpu_seconds()
                    outcome = sides[who](urls, folder)
                    spent[who].append((cpu_seconds() - before) / count * 1000)
                    images = outcome if who == "vlmdata" else images
                    assert who == "img2dataset" or outcome["download_status"].to_pylist() == ["success"] * count
            print(f"{count} images, {rounds} rounds in turn")
            for who, times in spent.items():
                middle = statistics.median(times)
                print(f"{who:<12} {middle:6.2f} ms of CPU an image, median ({min(times):.2f} to {max(times):.2f})")
            for what, of in (("medians", statistics.median), ("best", min)):
                print(f"ratio        {of(spent['img2dataset']) / of(spent['vlmdata']):6.2f} ({what})", flush=True)
            values = psnr(images, urls, folder)
    low = np.percentile(values, 1)
    print(
        f"PSNR against img2dataset's picture: median {np.median(values):.1f} dB, first percentile {low:.1f} dB, "
        f"worst {values.min():.1f} dB; {count - len(values)} have a side of one pixel more"
    )


def peak(count: int, host: str) -> None:
    """Downloads `count` small images in parts of 500, two at once, and prints the process's peak of memory in bytes."""
    from concurrent.futures import ThreadPoolExecutor

    with tempfile.TemporaryDirectory() as name:

        def part(start: int) -> None:
            folder = Path(name) / str(start)
            folder.mkdir()
            ours(
                [f"http://{host}/{number % 100:05d}.jpg?{number}" for number in range(start, start + 500)], folder, host
            )
            shutil.rmtree(folder)

        with ThreadPoolExecutor(2) as pool:
            list(pool.map(part, range(0, count, 500)))
    # Not getrusage: its number begins with that of the process that started this one.
    status = Path("/proc/self/status").read_text()
    print(next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM")))


def memory() -> None:
    """Prints the peaks of memory of few and of many images."""
    with tempfile.TemporaryDirectory() as name:
        site = Path(name) / "site"
        site.mkdir()
        make_pictures(site, 100)
        with serve(site) as host:
            for count in SMALL:
                command = [sys.executable, __file__, "peak", str(count), host]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                print(f"{count:>6} images: peak of memory {int(done.stdout.split()[-1]) / 1e6:.0f} MB")


def main() -> None:
    arguments = sys.argv[1:]
    if arguments[:1] == ["peak"]:
        peak(int(arguments[1]), arguments[2])
        return
    if not PHOTOS.is_dir():
        sys.exit("the demo's data is needed: make setup")
    if arguments != ["memory"]:
        speed(*(int(argument) for argument in arguments or ("3000", "5")))
    memory()


if __name__ == "__main__":
    main()
