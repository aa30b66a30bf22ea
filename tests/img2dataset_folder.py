"""A finished img2dataset output folder, made by img2dataset's own Downloader from a server on loopback."""

import http.server
import os
import threading
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa

WORDS = "a photo of the thing with number {} in the green park"


class _Site(http.server.BaseHTTPRequestHandler):
    """/N.jpg and /N.png are pictures, /broken.jpg is none, /N.gone is not there, /503 is an error."""

    def do_GET(self) -> None:
        name, _, kind = self.path.partition("?")[0].strip("/").partition(".")
        codes = {"gone": 404, "late": 503}
        body = b"" if kind in codes else b"no picture" if name == "broken" else picture(int(name), kind)
        self.send_response(codes.get(kind, 200))
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def picture(number: int, kind: str = "jpg") -> bytes:
    small = np.random.default_rng(number).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    return cv2.imencode(f".{kind}", cv2.resize(small, (200, 150), interpolation=cv2.INTER_CUBIC))[1].tobytes()


def urls(host: str, shard: int) -> list[str]:
    first = 20 * shard
    names = [f"{first + n}.{'png' if n % 4 == 0 else 'jpg'}" for n in range(12)]
    names += [f"{first}.gone", f"{first + 1}.gone", f"{first}.late", "broken.jpg?n={first}"]
    return [f"http://{host}/{name}" for name in names] + ["ftp+x://nowhere.invalid/a.jpg?token=secret"]


def make(folder: Path, shards: int = 2, writer: str = "WebDatasetSampleWriter", size: int = 96) -> None:
    """`folder` with 17 rows a shard: 12 stored, 2 not there, 1 server error, 1 that is no image, 1 that is no URL."""
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # img2dataset's imports look for newer versions otherwise
    from img2dataset import writer as writers
    from img2dataset.downloader import Downloader
    from img2dataset.resizer import Resizer

    folder.mkdir(parents=True)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Site)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        for shard in range(shards):
            links = urls(f"127.0.0.1:{server.server_port}", shard)
            table = pa.table({
                "url": links,
                "caption": [WORDS.format(20 * shard + n) for n in range(len(links))],
                "similarity": [0.25 + n / 100 for n in range(len(links))],
                "NSFW": ["UNLIKELY"] * len(links),
            })  # fmt: skip
            with pa.ipc.new_file(folder / "shard.arrow", table.schema) as file:
                file.write_table(table)
            resizer = Resizer(size, "keep_ratio", True)
            work = Downloader(getattr(writers, writer), resizer, 4, True, True, str(folder), table.column_names, 10,
                       100, 5, "sha256", None, "jpg", 0, None, None)  # fmt: skip
            work.download_shard((shard, str(folder / "shard.arrow")))
    finally:
        server.shutdown()
        server.server_close()
