"""The whole main job through the command line: what it leaves behind, and what a second run does."""

import io
import json
import os
import shutil
import signal
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import forked
import pyarrow.parquet as pq
import pytest
from conftest import HOSTILE, RECIPE, content, here, make_photos, prefect_home, prefect_server, vlmdata, write_recipe
from made_warc import pack, response

from vlmdata.dataset import Dataset


@pytest.fixture
def dataset(made):
    return Dataset(str(made / "runs/it"))


def sql(made, query):
    answer = here(made, "sql", "runs/it", query, "--format", "json")
    assert answer.returncode == 0, answer.stderr
    return json.loads(answer.stdout)


def test_every_pair_has_one_verdict_with_its_reason(made, dataset):
    counts = {row["reason"]: row["n"] for row in sql(made, "select reason, count(*) n from samples group by all")}
    assert counts["words"] == 1
    assert counts["english"] == 1
    assert counts["download: decode"] + counts.get("download: type", 0) == 1
    assert counts["duplicate: exact"] == 4
    assert sum(counts.values()) == 29
    funnel = dataset.latest()["funnel"]
    assert funnel[0]["left"] == 29
    assert (
        funnel[-1]["left"] == counts[None] == dataset.latest()["splits"]["train"] + dataset.latest()["splits"]["test"]
    )


def test_shards_are_read_alike_by_webdataset_datasets_and_pyarrow(made, dataset, tmp_path):
    import datasets
    import webdataset

    # beside each other, since `datasets` takes the signs of the dataset's folder for patterns
    paths = [
        shutil.copy(made / "runs/it" / shard["path"], tmp_path)
        for shard in sorted(dataset.latest()["shards"], key=lambda shard: shard["path"])
    ]
    tars = [path for path in paths if path.endswith(".tar")]
    tables = [path for path in paths if path.endswith(".parquet")]
    by_wds = [sample["__key__"] for sample in webdataset.WebDataset(tars, shardshuffle=False, empty_check=False)]
    by_hf = [row["json"]["uid"] for row in datasets.load_dataset("webdataset", data_files=tars, split="train",
                                                                 cache_dir=str(made / "hf"))]  # fmt: skip
    by_arrow = [uid for path in tables for uid in pq.read_table(path)["uid"].to_pylist()]
    kept = [row["uid"] for row in sql(made, "select uid from samples where kept")]
    assert by_wds == by_hf == by_arrow
    assert sorted(by_wds) == sorted(kept)


def test_a_hostile_caption_is_data_to_the_end(made):
    (row,) = sql(made, "select uid, kept from samples where caption like '<script>%'")
    story = here(made, "show", "runs/it", row["uid"])
    assert HOSTILE in story.stdout
    assert row["kept"]


def test_sql_reads_only_this_dataset(made):
    for query in (
        "drop table x",
        "copy samples to 'x.csv'",
        "select * from read_csv('/etc/passwd')",
        "select 1; select 2",
        "attach 'x.db'",
        "pragma version",
        "set threads = 3",
        "install httpfs",
    ):
        answer = here(made, "sql", "runs/it", query)
        assert answer.returncode == 2, query
        assert answer.stderr.startswith("error: ")
        assert answer.stdout == ""


def test_verify_names_a_byte_that_changed(made, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(made / "runs/it", copy)
    assert here(tmp_path, "verify", "copy").returncode == 0
    tar = next((copy / "snapshots/000001/shards").glob("*.tar"))
    changed = bytearray(tar.read_bytes())
    changed[700] ^= 1
    tar.write_bytes(changed)
    next(copy.glob("tables/text/*/000001-0000001.parquet")).unlink()
    found = here(tmp_path, "verify", "copy")
    assert found.returncode == 1
    lines = [line.split("\t") for line in found.stdout.splitlines()]
    assert {line[0].rsplit("/", 1)[1] for line in lines} == {tar.name, "000001-0000001.parquet"}
    assert [line[2] for line in lines if line[0].endswith("parquet")] == ["missing"]
    (copy / "snapshots/000001/manifest.json").unlink()
    found = here(tmp_path, "verify", "copy")
    assert found.returncode == 1
    assert found.stdout == "snapshots/000001/manifest.json\ta manifest\tmissing\n"


def test_verify_names_a_tables_manifest_that_is_damaged(made, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(made / "runs/it", copy)
    damaged = [next(copy.glob("tables/text/*/manifest.json")), copy / "tables/jobs/log/manifest.json"]
    for path in damaged:
        path.write_bytes(path.read_bytes()[:-20])
    found = here(tmp_path, "verify", "copy")
    assert found.returncode == 1
    paths = sorted(path.relative_to(copy).as_posix() for path in damaged)
    assert sorted(found.stdout.splitlines()) == [f"{path}\ta manifest\tdamaged" for path in paths]


def test_shards_that_are_gone_are_written_again(made, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(made, folder)
    tar = next((folder / "runs/it/snapshots/000001/shards").glob("*.tar"))
    kept = tar.read_bytes()
    tar.unlink()
    run = here(folder, "run", "recipe.yaml", "--set", "jobs=[]")
    assert run.returncode == 0, run.stderr
    assert f"{tar.name} is gone" in run.stderr
    assert (folder / "runs/it/snapshots/000002/shards" / tar.name).read_bytes() == kept


def test_the_summary_says_what_was_kept_and_what_to_type(made):
    told = (made / "run.log").read_text()
    assert "kept 22 of 29 pairs" in told
    assert "vlmdata sql runs/it" in told
    assert "Traceback" not in told
    assert "nanobind" not in told


def test_a_second_run_finds_nothing_to_do(made, monkeypatch):
    before = content(made / "runs/it")
    monkeypatch.setenv("PYTHONPROFILEIMPORTTIME", "1")
    again = vlmdata(made, "run", "recipe.yaml")
    assert again.returncode == 0
    assert "nothing to do" in again.stderr
    imported = {line.rsplit("|", 1)[1].strip() for line in again.stderr.splitlines() if line.startswith("import time:")}
    assert "vlmdata.plan" in imported
    # no server was started, and no worker
    assert not imported & {"prefect", "apache_beam", "img2dataset"}
    assert content(made / "runs/it") == before


def test_a_changed_rule_runs_selection_and_later_only(made, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(made, folder)
    files = {
        path: path.stat().st_mtime_ns
        for part in ("images", "tables")
        for path in (folder / "runs/it" / part).rglob("*.parquet")
    }
    run = here(folder, "run", "recipe.yaml", "--set", "select.rules.english=lang in ('en', 'de')")
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip().endswith("runs/it/snapshots/000002")
    assert all(path.stat().st_mtime_ns == changed for path, changed in files.items())
    dataset = Dataset(str(folder / "runs/it"))
    assert dataset.latest()["funnel"][-1]["left"] == 23
    assert dataset.latest()["parent"] == 1
    assert here(folder, "verify", "runs/it").returncode == 0


def test_a_run_killed_in_each_stage_goes_on_and_ends_with_the_same_bytes(made, tmp_path):
    folder = tmp_path / made.name
    folder.mkdir()
    shutil.copytree(made / "photos", folder / "photos")
    recipe = write_recipe(folder)
    alone = {**os.environ, "PREFECT_HOME": str(prefect_home(folder))}
    # each run goes on where the one before was killed: at the first line of its stage, of whose parts some are done
    for stage in ("ingest", "download", "signals", "dedup", "judge", "shards", "train"):
        # the first two have servers of their own, of which the second ends the first one's
        environment = alone if stage in ("ingest", "download") else {**alone, "PREFECT_API_URL": prefect_server()}
        with forked.command(folder, "run", str(recipe), environment=environment) as (run, told):
            for line in told:
                if line.startswith(stage):
                    os.kill(run.pid, signal.SIGKILL)
                    break
        assert run.exitcode == -signal.SIGKILL, f"{stage}: the run ended before it was killed"
    with forked.command(folder, "run", str(recipe), environment=environment) as (run, told):
        lines = told.readlines()
    assert run.exitcode == 0, lines
    assert content(folder / "runs/it") == content(made / "runs/it")


def test_signals_that_a_source_brings_are_judged_and_shown_like_any_other(tmp_path):
    """A rule on `source_score` rejects, also where a source has none; `after` may name it; every output has it."""
    make_photos(tmp_path / "photos")
    names = sorted(path.stem for path in (tmp_path / "photos").glob("*.txt"))[:12]
    captions = {name: (tmp_path / "photos" / f"{name}.txt").read_text() for name in names}
    with tarfile.open(tmp_path / "listed.tar", "w") as tar:
        for n, name in enumerate(names):
            tar.add(tmp_path / "photos" / f"{name}.jpg", f"{name}.jpg")
            about = json.dumps({"caption": captions[name], "score": n / 10}).encode()
            member = tarfile.TarInfo(f"{name}.json")
            member.size = len(about)
            tar.addfile(member, io.BytesIO(about))
    listed = {"kind": "webdataset", "name": "listed", "path": "listed.tar", "keep": ["score"]}
    recipe = write_recipe(
        tmp_path,
        sources=[listed, *RECIPE["sources"]],
        signals=["text", {"kind": "image", "after": ["scored"]}],
        select={"rules": {"scored": "source_score > 0.5"}},
        shards={"formats": ["webdataset"], "columns": ["source_score"]},
        dedup=[],
        jobs=[],
    )
    done = here(tmp_path, "run", str(recipe))
    assert done.returncode == 0, done.stderr
    query = "SELECT source, source_score, entropy IS NOT NULL AS measured, reason, uid FROM samples ORDER BY url"
    rows = json.loads(here(tmp_path, "sql", "runs/it", query, "--format", "json").stdout)
    scores = [row["source_score"] for row in rows if row["source"] == "listed"]
    assert scores == [n / 10 for n in range(12)]
    assert {row["source_score"] for row in rows if row["source"] == "photos"} == {None}
    for row in rows:
        passes = row["source_score"] is not None and row["source_score"] > 0.5
        assert (row["reason"] is None, row["measured"]) == (passes, passes) or row["reason"].startswith("download: ")
    kept = next(row for row in rows if row["reason"] is None)
    assert "source_score          0.6" in here(tmp_path, "show", "runs/it", kept["uid"]).stdout
    manifest = json.loads((tmp_path / "runs/it/snapshots/000001/manifest.json").read_text())
    assert manifest["columns"]["source_score"] == "double"
    assert manifest["tables"]["source_signals"]["rows"] == manifest["tables"]["pairs"]["rows"]
    wrong = here(tmp_path, "plan", str(recipe), "--set", "select.rules.scored=source_scores > 0.5")
    assert wrong.returncode == 2
    assert "did you mean 'source_score'?" in wrong.stderr


def test_secrets_of_a_recipe_reach_its_hosts_and_neither_prefects_database_nor_the_dataset(tmp_path):
    page = pack([response("https://h.example/", "<img src=1.png alt='one red box'>")])

    class Archive(BaseHTTPRequestHandler):
        def do_GET(self):
            wanted = self.path.endswith("/a.warc.gz?token=LEAK")
            body = page if wanted else b"no"
            self.send_response(200 if wanted else 403)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_HEAD = do_GET

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Archive) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        path = f"http://127.0.0.1:{server.server_port}/a.warc.gz?token=LEAK"
        recipe = write_recipe(tmp_path, sources=[{"kind": "commoncrawl", "format": "warc", "paths": [path]}])
        environment = {**os.environ, "PREFECT_HOME": str(prefect_home(tmp_path))}
        arguments = ("run", str(recipe), "--stages", "ingest")
        with forked.command(tmp_path, *arguments, environment=environment) as (run, told):
            lines = told.readlines()
        server.shutdown()
    assert run.exitcode == 0, lines
    assert Dataset(str(tmp_path / "runs/it")).tables_named("pairs")[0].rows == 1
    databases = {file: file.read_bytes() for file in (tmp_path / ".prefect").glob("prefect.db*")}
    assert any(b"/a.warc.gz" in content for content in databases.values())
    files = {file: file.read_bytes() for file in (tmp_path / "runs").rglob("*") if file.is_file()}
    assert [file for file, content in (databases | files).items() if b"LEAK" in content] == []
