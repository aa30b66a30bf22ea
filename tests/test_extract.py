"""The pipeline that reads sources file by file: the same whatever the workers, and what a kill leaves is kept."""

import os
import signal
import subprocess
import sys
import time

import pytest
from conftest import here, write_recipe
from made_warc import pack, response, wat, write

from vlmdata.dataset import Dataset
from vlmdata.errors import MachineError
from vlmdata.pipelines import extract
from vlmdata.recipe import CommonCrawlSource, Runner
from vlmdata.sources import commoncrawl

PAGES = [
    [response(f"https://example.org/{file}/{n}", f"<img src=i{n % 7}.jpg alt='image {n}'>") for n in range(40)]
    for file in range(4)
]


@pytest.fixture
def source(tmp_path):
    for number, pages in enumerate(PAGES):
        write(tmp_path / f"in [{number}]/x{number}.warc.gz", pack(pages))
    return CommonCrawlSource(kind="commoncrawl", paths=[str(tmp_path / "in*/*.warc.gz")], format="warc")


@pytest.fixture
def read(monkeypatch):
    """The names of the files that are read, in a list."""
    names = []
    read_file = commoncrawl.read_file

    def noted(source, file, counts):
        names.append(os.path.basename(file))
        yield from read_file(source, file, counts)

    monkeypatch.setattr(commoncrawl, "read_file", noted)
    return names


def parts(table):
    return [part.sha256 for part in table.parts]


def test_the_outcome_is_the_same_with_any_number_of_workers(tmp_path, source):
    tables = []
    for workers in (1, 3):
        dataset = Dataset(str(tmp_path / f"d{workers}"))
        tables.append(extract.run(dataset, source, "k", Runner(workers=workers)))
        assert dataset.read_table("observations", "k").rows == 160
        assert not dataset.exists("tables/extracted/k"), "nothing is left of the files' own rows"
    assert parts(tables[0]) == parts(tables[1])
    assert tables[0].rows == 160
    assert tables[0].about == {"source": "commoncrawl", "counts": {"pages": 160, "records": 160}}


def test_of_a_run_that_failed_only_the_missing_files_are_read(tmp_path, source, read):
    dataset = Dataset(str(tmp_path / "d"))
    broken = tmp_path / "in [2]/x2.warc.gz"
    content = broken.read_bytes()
    broken.unlink()
    broken.mkdir()  # it is there, and cannot be read
    listing = write(tmp_path / "warc.paths", b"\n".join(b"in [%d]/x%d.warc.gz" % (n, n) for n in range(4)))
    listed = source.model_copy(update={"paths": [str(listing)], "base": str(tmp_path)})
    with pytest.raises(MachineError, match=r"x2\.warc\.gz: cannot be fetched"):
        extract.run(dataset, listed, "k", Runner(workers=2))
    assert dataset.read_table("found", "k") is None
    assert sorted(read) == ["x0.warc.gz", "x1.warc.gz", "x2.warc.gz", "x3.warc.gz"]
    broken.rmdir()
    broken.write_bytes(content)
    read.clear()
    table = extract.run(dataset, listed, "k", Runner(workers=2))
    assert read == ["x2.warc.gz"]
    assert parts(table) == parts(extract.run(Dataset(str(tmp_path / "other")), source, "k", Runner(workers=1)))


def test_a_kill_costs_the_files_in_flight_alone(tmp_path, source, read):
    last = tmp_path / "in [3]/x3.warc.gz"
    content = last.read_bytes()
    last.unlink()
    os.mkfifo(last)  # reading it waits until somebody writes
    code = (
        "import sys; from vlmdata.dataset import Dataset; from vlmdata.pipelines import extract;"
        "from vlmdata.recipe import CommonCrawlSource, Runner;"
        "extract.run(Dataset(sys.argv[1]), CommonCrawlSource.model_validate_json(sys.argv[2]), 'k', Runner(workers=2))"
    )
    # a listing, since a glob does not say what a pipe is
    listing = write(tmp_path / "warc.paths", b"\n".join(b"in [%d]/x%d.warc.gz" % (n, n) for n in range(4)))
    source = source.model_copy(update={"paths": [str(listing)], "base": str(tmp_path)})
    command = [sys.executable, "-c", code, str(tmp_path / "d"), source.model_dump_json()]
    with subprocess.Popen(command, cwd=tmp_path, start_new_session=True) as child:
        done = tmp_path / "d/tables/extracted/k"
        deadline = time.monotonic() + 60
        while len(list(done.glob("*.parquet"))) < 2 and time.monotonic() < deadline and child.poll() is None:
            time.sleep(0.05)
        child.send_signal(signal.SIGKILL)
    kept = len(list(done.glob("*.parquet")))
    assert kept >= 2
    last.unlink()
    last.write_bytes(content)
    table = extract.run(Dataset(str(tmp_path / "d")), source, "k", Runner(workers=2))
    assert len(read) == 4 - kept
    assert "x3.warc.gz" in read
    assert table.rows == 160


def test_a_file_that_has_changed_is_read_again(tmp_path, source, read):
    dataset = Dataset(str(tmp_path / "d"))
    work = extract._Work(dataset.url, "k", source)
    file = str(tmp_path / "in [0]/x0.warc.gz")
    assert work((0, file))["part"]["rows"] == work((0, file))["part"]["rows"] == 40
    write(tmp_path / "in [0]/x0.warc.gz", pack(PAGES[0][:9]))
    assert work((0, file))["part"]["rows"] == 9
    assert len(read) == 2


def test_the_command_line_reads_a_listing_of_wat_files_and_tells_what_was_damaged(tmp_path):
    for number, pages in enumerate(PAGES[:2]):
        write(tmp_path / f"crawl-data/{number}.warc.wat.gz", pack(wat(pack(pages)))[: None if number else -500])
    write(tmp_path / "wat.paths.gz", pack([b"crawl-data/0.warc.wat.gz\n", b"crawl-data/1.warc.wat.gz\n"]))
    entry = {"kind": "commoncrawl", "name": "cc", "paths": ["wat.paths.gz"], "format": "wat", "base": "."}
    recipe = write_recipe(tmp_path, sources=[entry], signals=[], dedup=[], jobs=[], select={"rules": {}})
    run = here(tmp_path, "run", str(recipe), "--stages", "ingest")
    assert run.returncode == 0, run.stderr
    assert "0.warc.wat.gz: files cut off: 1; records read: 40" in run.stderr
    plan = here(tmp_path, "plan", str(recipe))
    assert "source cc              read: 79 found from 79 pages; files cut off: 1" in plan.stdout
