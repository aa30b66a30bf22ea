"""A crawl and a download of Debian's opencv-doc: pages by the thousand, and image links that lead nowhere.

`make test-peers` runs this: the package has 96 MB.
"""

import json
import threading
from collections import Counter

import pytest
from conftest import vlmdata, write_recipe
from peer import PEERS
from test_demo_data import demo

CRAWL = {"kind": "crawl", "name": "opencv", "autothrottle": False, "concurrency": 16, "max_pages": 1500}


@pytest.fixture(scope="module")
def site():
    """The package's HTML pages and what lies beside them, served on loopback."""
    root = PEERS / "opencv-doc"
    if not root.is_dir():
        aside = PEERS / "opencv-doc.aside"
        for name, read in demo._members(demo.debian("opencv-doc", PEERS)):
            if "/html/" in name:
                path = aside / name.partition("/html/")[2]
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(read())
        aside.rename(root)
    with demo.Server(root, ("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield root, f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_every_pair_of_it_has_one_end(site, tmp_path):
    root, url = site
    recipe = write_recipe(
        tmp_path,
        sources=[{**CRAWL, "start": [f"{url}/index.html"]}],
        download={"size": 64, "allow_hosts": [url.removeprefix("http://")]},
        signals=["text"],
        dedup=["exact"],
        select={"rules": {"words": "words >= 1"}},
        parts={"rows": 50},
        jobs=[],
    )
    run = vlmdata(tmp_path, "run", str(recipe))
    assert run.returncode == 0, run.stderr
    answer = vlmdata(tmp_path, "sql", "runs/it", "SELECT url, reason, kept, download_status FROM samples",
                     "--format", "json")  # fmt: skip
    rows = json.loads(answer.stdout)
    states = Counter(row["download_status"] for row in rows)
    assert set(states) <= {"success", "4xx", "type", "decode"}
    missing = {row["url"] for row in rows if not (root / row["url"].removeprefix(f"{url}/")).is_file()}
    assert {row["url"] for row in rows if row["download_status"] == "4xx"} == missing
    for row in rows:
        assert row["kept"] == (row["reason"] is None)
        assert row["download_status"] == "success" or row["reason"] == f"download: {row['download_status']}"
    assert states["4xx"] > 0
    assert states["success"] > 10
