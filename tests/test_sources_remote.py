"""Sources that lie elsewhere: an S3 server, a web server and a hub, all on loopback, read by their real clients."""

import gzip
import json
import os
import subprocess
import sys
from collections import Counter

import boto3
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hostile import send, serve
from made_warc import pack, response, wat
from moto.server import ThreadedMotoServer

from vlmdata import sources
from vlmdata.errors import InputError
from vlmdata.recipe import CommonCrawlSource, TableSource
from vlmdata.sources import commoncrawl

PAIRS = [(f"https://example.org/{n}.jpg", f"picture number {n}") for n in range(7)]


def parquet(rows):
    out = pa.BufferOutputStream()
    pq.write_table(pa.table({"url": [url for url, _ in rows], "caption": [text for _, text in rows]}), out)
    return out.getvalue().to_pybytes()


def pairs(source):
    sources.check(source)
    return [(row["url"], row["caption"]) for batch in sources.read(source, ".") for row in batch.to_pylist()]


def crawled(source):
    sources.check(source)
    batches = [batch for file in commoncrawl.files(source) for batch in commoncrawl.read_file(source, file, Counter())]
    return [(row["url"], row["caption"]) for batch in batches for row in batch.to_pylist()]


@pytest.fixture(scope="module")
def s3():
    """A function that puts a file into the bucket `pool`; fsspec's `s3://` means this server meanwhile."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    settings = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name, value)
        client = boto3.client("s3")
        client.create_bucket(Bucket="pool")
        yield lambda key, body: client.put_object(Bucket="pool", Key=key, Body=body)
    server.stop()


def test_tables_are_read_from_s3(s3):
    s3("laion/part-0.parquet", parquet(PAIRS[:4]))
    s3("laion/part-1.parquet", parquet(PAIRS[4:]))
    s3("list.csv.gz", gzip.compress(b"url,caption\n" + "".join(f"{u},{t}\n" for u, t in PAIRS).encode()))
    for path in ("s3://pool/laion/*.parquet", "s3://pool/list.csv.gz"):
        assert pairs(TableSource(kind="table", path=path)) == PAIRS
    with pytest.raises(InputError, match=r"sources.table.path: 's3://pool/none/\*' matches no file"):
        sources.check(TableSource(kind="table", path="s3://pool/none/*"))


def test_a_listing_of_common_crawl_on_s3_names_its_files_there(s3):
    pages = [response(f"https://example.org/{n}", f'<img src="/{n}.jpg" alt="picture number {n}">') for n in range(7)]
    s3("crawl-data/a.wat.gz", pack(wat(pack(pages[:4]))))
    s3("crawl-data/b.wat.gz", pack(wat(pack(pages[4:]))))
    s3("crawl-data/wat.paths.gz", gzip.compress(b"crawl-data/b.wat.gz\ncrawl-data/a.wat.gz\n"))
    s3("crawl-data/a.warc.gz", pack(pages))
    listed = CommonCrawlSource(
        kind="commoncrawl", format="wat", paths=["s3://pool/crawl-data/wat.paths.gz"], base="s3://pool/"
    )
    assert commoncrawl.files(listed) == ["s3://pool/crawl-data/a.wat.gz", "s3://pool/crawl-data/b.wat.gz"]
    globbed = CommonCrawlSource(kind="commoncrawl", format="warc", paths=["s3://pool/crawl-data/*.warc.gz"])
    assert commoncrawl.files(globbed) == ["s3://pool/crawl-data/a.warc.gz"]
    for source in (listed, globbed):
        assert crawled(source) == PAIRS


def test_tables_and_listings_are_read_from_a_web_server():
    pages = [response("https://example.org/", f'<img src="{url}" alt="{text}">') for url, text in PAIRS]
    contents = {
        "/t.parquet": parquet(PAIRS),
        "/wat.paths.gz": gzip.compress(b"x/a.wat.gz\n"),
        "/x/a.wat.gz": pack(wat(pack(pages))),
    }
    with serve({path: send(content) for path, content in contents.items()}) as site:
        assert pairs(TableSource(kind="table", path=site.url("/t.parquet"))) == PAIRS
        listing = site.url("/wat.paths.gz")
        source = CommonCrawlSource(kind="commoncrawl", format="wat", paths=[listing], base=site.url("/"))
        assert commoncrawl.files(source) == [site.url("/x/a.wat.gz")]
        assert crawled(source) == PAIRS


def hub(name, files):
    """Routes of a hub that has one dataset, as far as its client asks for them: name -> content below `data/`."""
    revision = "a" * 40
    api, resolve = f"/api/datasets/{name}", f"/datasets/{name}/resolve/{revision}"
    listed = [
        {"type": "file", "oid": "b" * 40, "size": len(body), "path": f"data/{file}"} for file, body in files.items()
    ]
    about = {
        "_id": "1", "id": name, "sha": revision, "private": False, "gated": False, "disabled": False, "tags": [],
        "downloads": 0, "likes": 0, "siblings": [{"rfilename": entry["path"]} for entry in listed],
    }  # fmt: skip
    answers = {
        api: about,
        f"{api}/revision/{revision}": about,
        f"{api}/tree/{revision}?recursive=false&expand=false": [{"type": "directory", "oid": "c" * 40, "path": "data"}],
        f"{api}/tree/{revision}/data?recursive=false&expand=false": listed,
    }

    def ranged(body):
        def answer(wire):
            first, _, last = wire.headers["range"].removeprefix("bytes=").partition("-")
            part = body[int(first) : int(last) + 1]
            where = f"bytes {first}-{int(first) + len(part) - 1}/{len(body)}"
            wire.answer(part, "206 Partial Content", Content_Range=where, ETag='"x"', X_Repo_Commit=revision)

        return answer

    routes = {path: send(json.dumps(body).encode(), Content_Type="application/json") for path, body in answers.items()}
    routes |= {f"{resolve}/data/{file}": ranged(body) for file, body in files.items()}
    return {**routes, "*": send(b"{}", "404 Not Found", X_Error_Code="EntryNotFound")}


ASK = """
import json
from vlmdata import sources
from vlmdata.errors import InputError
from vlmdata.recipe import TableSource
for split in ("train", "tests"):
    source = TableSource(kind="table", hf="someone/pool", split=split)
    try:
        sources.check(source)
        print(json.dumps([[row["url"], row["caption"]] for b in sources.read(source, ".") for row in b.to_pylist()]))
    except InputError as error:
        print(json.dumps(str(error)))
"""


def test_a_hugging_face_dataset_is_read_by_its_name(tmp_path):
    files = {"train-00000-of-00002.parquet": parquet(PAIRS[:3]), "train-00001-of-00002.parquet": parquet(PAIRS[3:])}
    with serve(hub("someone/pool", files)) as site:
        # its client reads the hub's address when it is imported
        environment = {**os.environ, "HF_ENDPOINT": site.url(""), "HF_HOME": str(tmp_path)}
        run = subprocess.run([sys.executable, "-c", ASK], env=environment, capture_output=True, text=True, timeout=120)
        assert run.returncode == 0, run.stderr
        found, refusal = map(json.loads, run.stdout.splitlines())
        assert [tuple(pair) for pair in found] == PAIRS
        assert "sources.table.hf: 'someone/pool'" in refusal
        assert "tests" in refusal
        assert len([path for path in site.paths() if path == "/api/datasets/someone/pool"]) <= 2
