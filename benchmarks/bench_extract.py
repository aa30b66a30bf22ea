"""MB and pairs a CPU-second from WAT and WARC files, ours beside the peers': cc2dataset, warcio with BeautifulSoup.

The input is made of the demo's real pages (`make setup` fetches them), repeated. Every candidate reads the same file in
a process of its own, one at a time; its imports do not count. MB are those of the uncompressed records. Then three
readers of JSON on the same WAT records, and the peak of memory for these files and for ten times as much.
"""

import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SITE = ROOT / ".cache/demo/site"
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests/peers")]
WAT_COPIES, WARC_COPIES = 6, 2
ROUNDS = 2
MORE = 10


def ours(path: str, form: str) -> int:
    from vlmdata.download.forgotten import Forgotten
    from vlmdata.ingest import raw_schema, with_uid
    from vlmdata.recipe import CommonCrawlSource
    from vlmdata.sources.commoncrawl import read_file

    source = CommonCrawlSource(kind="commoncrawl", paths=[path], format=form)
    batches = read_file(source, path, Counter())
    # cc2dataset hashes each pair, so its counterpart does, too
    return sum(
        (with_uid(batch, raw_schema(source), Forgotten()) if form == "wat" else batch).num_rows for batch in batches
    )


def cc2dataset(path: str, _form: str) -> int:
    from peer import extract_documents_from_wat

    with open(path, "rb") as file:
        return len(extract_documents_from_wat(file, "image"))


def beautifulsoup(path: str, parser: str) -> int:
    from urllib.parse import urljoin

    import peer  # noqa: F401 - where the peers are
    from bs4 import BeautifulSoup
    from warcio.archiveiterator import ArchiveIterator

    pairs = 0
    with open(path, "rb") as file:
        for record in ArchiveIterator(file):
            if record.rec_type != "response" or record.http_headers.get_statuscode() != "200":
                continue
            if "html" not in (record.http_headers.get_header("Content-Type") or ""):
                continue
            url = record.rec_headers.get_header("WARC-Target-URI")
            soup = BeautifulSoup(record.content_stream().read(), parser)
            images = [(urljoin(url, i["src"]), i["alt"]) for i in soup.find_all("img", src=True) if i.get("alt")]
            pairs += len(images)
    return pairs


def links(path: str, parser: str) -> int:
    """Reads the records, and of each its links, all of which are looked at."""
    import peer  # noqa: F401 - where the peers are
    from fastwarc.warc import WarcRecordType

    from vlmdata.sources import wat
    from vlmdata.sources.warc import blocks

    def walk(record: Any) -> list[Any]:
        html = record["Envelope"]["Payload-Metadata"].get("HTTP-Response-Metadata", {}).get("HTML-Metadata", {})
        return [(link.get("path"), link.get("url"), link.get("alt")) for link in html.get("Links", ())]

    def typed(block: bytes) -> list[Any]:
        payload = wat._parse(block).payload
        html = payload.response.html if payload and payload.response else None
        return [(link.path, link.url, link.alt) for link in (html.links if html else None) or ()]

    if parser == "msgspec":
        read = typed
    elif parser == "orjson":
        import orjson

        read = lambda block: walk(orjson.loads(block))  # noqa: E731
    else:
        import simdjson

        lazy = simdjson.Parser()
        read = lambda block: walk(lazy.parse(block))  # noqa: E731
    with open(path, "rb") as file:
        return sum(len(read(block)) for _, block in blocks(file, WarcRecordType.metadata, Counter()))


RUNS = {"ours": ours, "cc2dataset": cc2dataset, "beautifulsoup": beautifulsoup, "links": links}


def measure(name: str, path: Path, option: str) -> tuple[float, int, int]:
    """(CPU seconds, pairs, peak of memory in bytes), the best of two rounds, in a new process."""
    command = [sys.executable, __file__, name, str(path), option]
    best = (float("inf"), 0, 0)
    for _ in range(ROUNDS if name != "beautifulsoup" else 1):
        said = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
        best = min(best, (float(said[0]), int(said[1]), int(said[2])))
    return best


def main() -> None:
    pages = sorted(SITE.rglob("*.html"))
    if not pages:
        sys.exit("the demo's pages are missing: make setup")
    subprocess.run(["make", "-s", "peers"], cwd=ROOT, check=True)
    from made_warc import pack, response, wat

    records = [response(f"https://docs.example.org/{page.relative_to(SITE)}", page.read_bytes()) for page in pages]
    metadata = list(wat(b"".join(records)))
    with tempfile.TemporaryDirectory() as folder:
        warc_file, wat_file = Path(folder) / "x.warc.gz", Path(folder) / "x.wat.gz"
        warc_file.write_bytes(pack(records) * WARC_COPIES)
        wat_file.write_bytes(pack(metadata) * WAT_COPIES)
        Path(f"{warc_file}.small").write_bytes(pack(records[:20]))
        Path(f"{wat_file}.small").write_bytes(pack(metadata[:20]))
        compare("WAT", wat_file, WAT_COPIES * sum(map(len, metadata)), "wat", [("cc2dataset", "image")])
        peers = [("beautifulsoup", "html.parser"), ("beautifulsoup", "lxml")]
        compare("WARC", warc_file, WARC_COPIES * sum(map(len, records)), "warc", peers)
        print("readers of JSON on the WAT records, gzip and WARC included")
        for parser in ("msgspec", "orjson", "simdjson"):
            show("links", wat_file, parser, WAT_COPIES * sum(map(len, metadata)), "links")
        print("peak of memory")
        for form, path in (("wat", wat_file), ("warc", warc_file)):
            few = measure("ours", path, form)[2]
            path.write_bytes(path.read_bytes() * MORE)
            many = measure("ours", path, form)[2]
            print(f"  {form}: {few / 1e6:.0f} MB for this file, {many / 1e6:.0f} MB for one {MORE} times as long")


def compare(title: str, path: Path, size: int, form: str, peers: list[tuple[str, str]]) -> None:
    print(f"{title}: {size / 1e6:.0f} MB, {path.stat().st_size / 1e6:.1f} MB compressed")
    own, _ = show("ours", path, form, size)
    for name, option in peers:
        other, _ = show(name, path, option, size)
        print(f"  ours is {other / own:.2f} times as fast as {name} ({option})")


def show(name: str, path: Path, option: str, size: int, what: str = "pairs") -> tuple[float, int]:
    seconds, pairs, _ = measure(name, path, option)
    print(f"  {name + ' ' + option:<28} {size / 1e6 / seconds:7.1f} MB and {pairs / seconds:9,.0f} {what} a CPU-second")
    return seconds, pairs


def one(name: str, path: str, option: str) -> None:
    """Print CPU seconds, pairs, the peak of memory. The first round, over a small file, is for imports and caches."""
    RUNS[name](f"{path}.small", option)
    started = time.process_time()
    pairs = RUNS[name](path, option)
    spent = time.process_time() - started
    # Not getrusage: its number begins with that of the process that started this one.
    status = Path("/proc/self/status").read_text()
    print(spent, pairs, next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM")))


if __name__ == "__main__":
    one(*sys.argv[1:]) if len(sys.argv) > 1 else main()
