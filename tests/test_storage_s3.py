"""A dataset on S3: the same bytes as on a disk, whatever it does meanwhile, and nothing half-written in sight."""

import json
import socket
import threading
import time
from pathlib import Path

import fsspec
import pytest
from conftest import content, make_photos
from s3_server import FAILED, SLOW_DOWN, quick_s3

import vlmdata.lock as locks
from vlmdata import card, catalog, ingest, snapshot, storage
from vlmdata.cli import app, guarded
from vlmdata.dataset import Dataset
from vlmdata.errors import InputError, MachineError, RefusedError
from vlmdata.lock import lock
from vlmdata.pipelines import dedup, download, select, shards, signals
from vlmdata.plan import GROUPED, done_already, make_plan
from vlmdata.recipe import Recipe
from vlmdata.report import write_report
from vlmdata.select.reconsider import reconsider
from vlmdata.sources import files
from vlmdata.train import data, source

RECIPE = {
    "download": {"size": 64},
    "signals": ["text"],
    "dedup": ["exact"],
    "select": {"rules": {"words": "words >= 3"}},
    "shards": {"samples": 8, "splits": {"train": 0.7, "test": 0.3}},
    "parts": {"rows": 15},
}


def run(url, photos, **changes):
    """What the flow `curate` does with this recipe, without Prefect; the dataset."""
    folder = {"kind": "folder", "name": "photos", "path": str(photos)}
    plan = make_plan(Recipe.model_validate({"dataset": url, "sources": [folder], **RECIPE, **changes}))
    dataset = Dataset(url)
    with lock(dataset, "a run"):
        dataset.remove("work")
        if done_already(plan, dataset):
            return dataset
        key = plan.found["photos"]
        found = dataset.read_table("found", key) or ingest.read_source(dataset, plan.recipe.sources[0], key)
        pairs = dataset.read_table("pairs", plan.pairs) or ingest.unite(
            dataset, [found], plan.pairs, plan.recipe.parts.rows, None, {}
        )
        tables = {"pairs": pairs}
        images = dataset.current_table("images", plan.images, tables.values())
        tables["images"] = images or download.run(plan, dataset, pairs)
        tables |= signals.run(plan, dataset, tables)
        dedup.run(plan, dataset, tables)
        tables |= {name: dataset.read_table(name, plan.tables[name]) for name in GROUPED if name in plan.tables}
        number = snapshot.next_number(dataset)
        selection = select.run(plan, dataset, tables, number)
        written = shards.run(plan, dataset, tables, selection, number)
        manifest = snapshot.manifest(plan, number, tables, selection.samples, written, [])
        documents = card.write_documents(dataset, manifest)
        dataset.publish(snapshot.manifest(plan, number, tables, selection.samples, written, documents))
        shards.clean(dataset)
        download.clean(dataset)
    return dataset


@pytest.fixture(scope="module")
def s3(tmp_path_factory):
    with quick_s3("pool", tmp_path_factory.mktemp("cache")) as store:
        yield store


@pytest.fixture(autouse=True)
def let_through(s3):
    s3.open()


@pytest.fixture
def impatient(monkeypatch):
    """Few and short retries, of a client that no other test has."""
    kwargs = {"retries": {"mode": "standard", "total_max_attempts": 1}}
    monkeypatch.setitem(fsspec.config.conf, "s3", {**fsspec.config.conf["s3"], "config_kwargs": kwargs})
    monkeypatch.setattr(fsspec.get_filesystem_class("s3"), "retries", 1)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures") / "photos"
    make_photos(folder)
    return folder


@pytest.fixture(scope="module")
def local(photos, tmp_path_factory):
    """The run on a local disk."""
    return run(str(tmp_path_factory.mktemp("local") / "it"), photos)


@pytest.fixture(scope="module")
def remote(s3, photos):
    """The same run on S3, of whose requests one in 15 is answered by SlowDown; tests do not change it."""
    s3.open()
    s3.refuse = lambda request: SLOW_DOWN if len(s3.seen) % 15 == 0 else None
    dataset = run("s3://pool/it", photos)
    assert s3.refused > 10
    s3.open()
    return dataset


def same_as(local, remote, folder):
    """Whether all files of two datasets are equal; `folder` is for a copy."""
    remote.fs.get(remote.root, str(folder), recursive=True)
    ours, theirs = content(folder), content(Path(local.root))
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if ours[name] != theirs[name]] == []


def test_a_run_on_a_throttled_store_gives_the_bytes_of_a_run_on_a_disk(local, remote, tmp_path):
    same_as(local, remote, tmp_path / "copy")
    assert list(snapshot.verify(remote)) == []


def test_a_second_run_writes_nothing_but_its_lock(s3, remote, photos):
    run(remote.url, photos)
    assert {request.path for request in s3.seen if request.method != "GET" and request.method != "HEAD"} <= {
        "/pool/it/lock.json",
        "/pool",  # several objects are deleted by one request to the bucket
    }
    assert Dataset(remote.url).latest()["number"] == 1


def test_what_a_query_the_funnel_and_the_report_tell_is_the_same(local, remote):
    query = "SELECT reason, count(*) n FROM samples JOIN pairs USING (uid) GROUP BY ALL ORDER BY ALL"
    told = [catalog.query(catalog.connect(each), query).fetchall() for each in (local, remote)]
    assert told[0] == told[1]
    assert sum(row[1] for row in told[0]) == 29
    changed = ["select.rules.words='words >= 9'"]
    assert reconsider(local, changed) == reconsider(remote, changed)
    place = write_report(remote, remote.latest())
    assert place == "s3://pool/it/snapshots/000001/report.html"
    assert b"<h1" in remote.read_bytes("snapshots/000001/report.html")


@pytest.mark.parametrize("path", ["/etc/passwd", "s3://pool/secret.csv"])
def test_a_query_reads_nothing_else(s3, remote, path):
    s3.client.put_object(Bucket="pool", Key="secret.csv", Body=b"a\n1\n")
    with pytest.raises(InputError, match="Permission Error"):
        catalog.query(catalog.connect(remote), f"SELECT * FROM read_csv('{path}')").fetchall()


def test_a_training_reads_the_same_samples(local, remote, tmp_path):
    there = [data.index(source.shards(each)["train"], tmp_path) for each in (local.url, remote.url)]
    assert there[1].tars[0].startswith("s3://pool/it/snapshots/000001/shards/train-")
    assert there[0].uids == there[1].uids
    for reading in (data.caption, data.meta):
        assert [reading(there[0], n) for n in range(5)] == [reading(there[1], n) for n in range(5)]
    named = source.shards("s3://pool/it/snapshots/000001/shards/*.tar")
    assert named == source.shards(remote.url)


def test_a_lasting_outage_is_told_with_the_url(s3, remote, impatient, capsys):
    s3.refuse = lambda request: SLOW_DOWN
    assert guarded(lambda: app(["verify", "s3://pool/it"], standalone_mode=False)) == MachineError.exit_code
    assert "s3://pool/it/latest.json" in capsys.readouterr().err


def test_a_server_that_is_gone_is_told_with_the_url(s3, monkeypatch, impatient, tmp_path):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{closed.getsockname()[1]}")
        fsspec.get_filesystem_class("s3").clear_instance_cache()
        for work in (
            lambda: Dataset("s3://pool/it").latest(),
            lambda: Dataset("s3://pool/it").write_json("x.json", 1),
            lambda: files.find("s3://pool/it/*", "sources.x.path"),
            lambda: data.index(["s3://pool/it/a.tar"], tmp_path),
        ):
            with pytest.raises(MachineError, match=r"s3://pool/it/"):
                work()
    fsspec.get_filesystem_class("s3").clear_instance_cache()


def test_a_bucket_that_is_not_there_is_told(s3):
    with pytest.raises(InputError, match=r"s3://none/it/lock\.json"), lock(Dataset("s3://none/it"), "a run"):
        pass


def test_a_run_that_an_outage_ended_goes_on_to_the_same_bytes(s3, local, photos, impatient, tmp_path):
    url = "s3://pool/outage"
    s3.refuse = lambda _: (
        SLOW_DOWN if any("/images/" in each.path and each.method == "PUT" for each in s3.seen) else None
    )
    with pytest.raises(MachineError, match=url):
        run(url, photos)
    assert s3.refused
    s3.open()
    Dataset(url).remove("lock.json")  # what its own end could not reach either
    same_as(local, run(url, photos), tmp_path / "copy")


def test_a_failing_multipart_upload_shows_nothing_and_leaves_nothing(s3, monkeypatch, tmp_path):
    monkeypatch.setattr(storage, "UPLOAD_CHUNK", 5 << 20)
    dataset, shown = Dataset("s3://pool/large"), []
    whole = bytes(range(256)) * (12 << 12)

    def refuse(request):
        if request.parts.get("partNumber") == ["2"]:
            shown.append(s3.client.list_objects_v2(Bucket="pool", Prefix="large/").get("KeyCount"))
            return FAILED
        return None

    s3.refuse = lambda request: refuse(request) if request.parts.get("partNumber") else None
    with pytest.raises(MachineError, match=r"s3://pool/large/images/k/1\.tar: .*The part could not be taken"):
        dataset.write_bytes("images/k/1.tar", whole)
    assert shown == [0]
    assert not dataset.exists("images/k/1.tar")
    assert "Uploads" not in s3.client.list_multipart_uploads(Bucket="pool")
    s3.open()
    file = dataset.write_bytes("images/k/1.tar", whole)
    # by its upload, since a chunk of the failed one may still be on its way
    done = next(each.parts["uploadId"] for each in s3.seen if each.method == "POST" and "uploadId" in each.parts)
    assert sum("partNumber" in each.parts and each.parts["uploadId"] == done for each in s3.seen) == 3
    assert dataset.sha256("images/k/1.tar") == (file.sha256, len(whole))
    assert dataset.read_bytes("images/k/1.tar") == whole


def test_a_reader_sees_the_old_snapshot_or_the_new_one(s3, remote, photos):
    url = "s3://pool/read"
    remote.fs.copy(remote.root, "pool/read", recursive=True)
    told, over = [], threading.Event()

    query = "SELECT count(*), count(*) FILTER (kept), max(text.words) FROM samples JOIN text USING (uid)"

    def read():
        while not over.is_set() or len(set(told)) < 2:
            connection = catalog.connect(Dataset(url))
            told.extend(connection.sql(query).fetchall())
            connection.close()
            over.wait(0.5)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    while not told and reader.is_alive():
        time.sleep(0.01)
    run(url, photos, select={"rules": {"words": "words >= 11"}})
    over.set()
    reader.join(30)
    old, new = told[0], told[-1]
    assert old[1] > new[1]
    switched = told.index(new)
    assert told == [old] * switched + [new] * (len(told) - switched)


@pytest.mark.parametrize("left", [False, True])
def test_of_many_runs_that_start_at_once_one_gets_the_lock(s3, left):
    url = f"s3://pool/locks-{left}"
    if left:
        dead = {"owner": "x", "what": "a run", "pid": 999999999, "started": 0.0, "heartbeat": 0}
        Dataset(url).write_json("lock.json", {**dead, "host": socket.gethostname()})
    go, over, got, refused = threading.Barrier(6), threading.Event(), [], []

    def start():
        go.wait()
        try:
            with lock(Dataset(url), "a starter"):
                got.append(1)
                over.wait(30)
        except RefusedError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=start) for _ in range(6)]
    for thread in threads:
        thread.start()
    while len(got) + len(refused) < 6 and len(refused) < 5:
        time.sleep(0.05)
    time.sleep(0.5)
    over.set()
    for thread in threads:
        thread.join()
    assert got == [1]
    assert len(refused) == 5
    assert all(url in message for message in refused)
    assert not Dataset(url).exists("lock.json")


def test_a_lock_whose_put_was_answered_too_late_is_still_ours(s3, monkeypatch):
    """The client tries again, and the store says that the lock is there: it is this run's own."""
    real = locks.upload

    def lost(fs, aside, path, **conditions):
        real(fs, aside, path, **conditions)
        raise FileExistsError(path)

    monkeypatch.setattr(locks, "upload", lost)
    with lock(Dataset("s3://pool/lost"), "a run"):
        assert json.loads(Dataset("s3://pool/lost").read_bytes("lock.json"))["what"] == "a run"


def test_where_files_show_while_they_are_written_they_are_renamed(tmp_path):
    dataset, seen = Dataset("memory://renamed"), []
    real = dataset.fs.put_file

    def put(aside, path, **options):
        seen.append(path)
        real(aside, path, **options)

    dataset.fs.put_file = put
    try:
        for number in (1, 2):
            dataset.write_json("latest.json", {"snapshot": number})
    finally:
        del dataset.fs.put_file
    assert all(path.endswith(".partial") for path in seen)
    assert dataset.read_json("latest.json") == {"snapshot": 2}
    assert [path.rsplit("/", 1)[1] for path in dataset.fs.ls(dataset.root, detail=False)] == ["latest.json"]


def test_what_the_environment_says_goes_before_our_defaults(monkeypatch):
    monkeypatch.setattr(fsspec.config, "conf", {"s3": {"use_listings_cache": True}})
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
    storage._set_defaults()
    retries = {"mode": "standard"}
    assert fsspec.config.conf["s3"] == {"use_listings_cache": True, "config_kwargs": {"retries": retries}}
    s3 = fsspec.get_filesystem_class("s3")
    made = fsspec.config.apply_config(s3, {}, fsspec.config.conf)
    assert made == fsspec.config.conf["s3"]  # and nothing under another of its names
    assert fsspec.config.conf["gs"] == {"use_listings_cache": False}
