"""Jobs: what a command is given, how it ends, what the catalog knows of it afterwards."""

import datetime
import json
import logging
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pytest
from made_dataset import pair, picture, publish
from pydantic import TypeAdapter, ValidationError

from vlmdata import catalog, tags
from vlmdata.dataset import Dataset
from vlmdata.errors import InputError, JobError
from vlmdata.jobs import Attempt, Ended, by_hand, job_key, missing, run_job
from vlmdata.jobs.command import arguments, braces
from vlmdata.jobs.local import run_process
from vlmdata.parts import Table
from vlmdata.recipe import Job, Recipe
from vlmdata.schemas import table_schema
from vlmdata.train import source

HOSTILE = "a b; rm -rf $HOME `id` 'q' & x"
CHANGES = {
    "signals": ["text"], "dedup": [], "select": {}, "jobs": [],
    "shards": {"samples": 3, "splits": {"train": 0.7, "test": 0.3}},
}  # fmt: skip


@pytest.fixture(scope="module")
def once(tmp_path_factory):
    return publish(
        tmp_path_factory.mktemp("once"), [pair(f"a house number {n}", picture(n)) for n in range(12)], CHANGES
    )


@pytest.fixture
def published(once, tmp_path):
    """A dataset in a folder with a hostile name: 12 pairs in shards of three."""
    dataset, manifest = once
    shutil.copytree(dataset.root, tmp_path / HOSTILE / "data")
    return Dataset(str(tmp_path / HOSTILE / "data")), manifest


def command(*run, **more):
    return TypeAdapter(Job).validate_python({"kind": "command", "run": list(run), **more})


def python(code, *more, **options):
    return command("{python}", "-c", code, *more, **options)


def rows(dataset, query):
    return catalog.query(catalog.connect(dataset), query).fetchall()


def test_paths_of_a_hostile_dataset_reach_a_command_as_single_arguments(published):
    dataset, manifest = published
    code = "import json, os, sys; json.dump([sys.argv, os.environ['DATA']], open(sys.argv[1] + '/told.json', 'w'))"
    given = [
        "{out}",
        "{webdataset}",
        "--data={webdataset:test}",
        "{samples}",
        "{dataset}",
        "{snapshot}",
        "{{out}}",
        '{"a": {}}',
    ]
    job = python(code, *given, "{parquet}", env={"DATA": "at {snapshot}"})
    run_job(job, dataset, manifest)
    folder = Attempt(job, dataset, manifest).folder
    (_, out, tars, test, samples, root, snapshot, literal, other, *tables), data = json.loads(
        (folder / "told.json").read_text()
    )
    assert out == str(folder)
    assert out.startswith(root)
    assert HOSTILE in root
    assert snapshot == f"{root}/snapshots/000001"
    assert data == f"at {snapshot}"
    assert int(samples) == manifest["splits"]["train"]
    assert (literal, other) == ("{out}", '{"a": {}}')
    assert test.startswith("--data=")
    assert sorted(tables) == sorted(str(path) for path in Path(root).glob("snapshots/000001/shards/train-*.parquet"))
    assert len(tables) > 1
    import webdataset

    for pattern, split in ((tars, "train"), (test.removeprefix("--data="), "test")):
        assert "{" in pattern or split == "test"
        urls = webdataset.shardlists.expand_urls(pattern)
        assert urls == sorted(str(path) for path in Path(root).glob(f"snapshots/000001/shards/{split}-*.tar"))
        read = [sample["__key__"] for sample in webdataset.WebDataset(pattern, shardshuffle=False)]
        assert len(read) == manifest["splits"][split]


def test_shards_of_several_snapshots_are_joined():
    tars = [f"/d/snapshots/000001/shards/train-{n:07d}.tar" for n in (0, 1, 2, 4, 9, 10)]
    tars += ["/d/snapshots/000001/shards/train-0000003.r2.tar", "/d/snapshots/000002/shards/train-0000000.tar"]
    import webdataset

    pattern = braces(tars)
    assert sorted(webdataset.shardlists.expand_urls(pattern)) == sorted(tars)
    assert "train-{0000000..0000002}.tar" in pattern
    for bad in ("/d{1,2}/train-0.tar", "/d::e/train-0.tar"):
        with pytest.raises(InputError, match="as patterns"):
            braces([bad])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"run": ["x", "{webdatset}"]}, r"no placeholder {webdatset}; did you mean 'webdataset'"),
        ({"run": ["x", "--a={out:train}"]}, "only webdataset, parquet, samples are of a split"),
        ({"run": ["x", "{webdataset:tset}"]}, "no split is called 'tset'; did you mean 'test'"),
        ({"run": ["x", "{parquet}"]}, "shards.formats leaves these shards out"),
        ({"run": []}, "at least 1 item"),
        ({"run": ["x"], "env": {"A=B": "c"}}, "should match pattern"),
        ({"run": ["x"], "on": {"kind": "slurm", "partition": "a\nrm -rf ~"}}, "should match pattern"),
        ({"run": ["x"], "on": "slrum"}, "does not match any of the expected tags"),
        ({"run": ["x"], "on": {"kind": "deployment", "name": "flow"}}, "should match pattern"),
    ],
)  # fmt: skip
def test_a_wrong_job_is_refused_before_anything_runs(changes, message):
    recipe = {
        "dataset": "d", "sources": [{"kind": "folder", "path": "p"}],
        "shards": {"formats": ["webdataset"], "splits": {"train": 0.5, "test": 0.5}},
        "jobs": [{"kind": "command", **changes}],
    }  # fmt: skip
    with pytest.raises(ValidationError, match=message):
        Recipe.model_validate(recipe)


def test_a_finished_command_is_recorded_with_its_metrics_and_not_repeated(published):
    dataset, manifest = published
    code = "import json, sys; print('hello'); json.dump({'acc/top1': 0.5, 'n': 3}, open(sys.argv[1], 'w'))"
    job = python(code, "{out}/metrics.json", name="mine")
    assert run_job(job, dataset, manifest) == {"acc/top1": 0.5, "n": 3.0}
    found = rows(
        dataset, "select state, exit_code, seconds is null, kind, key, log from jobs order by seconds nulls first"
    )
    assert [row[:3] for row in found] == [("running", None, True), ("done", 0, False)]
    assert found[0][3:5] == ("command", job_key(job))
    assert dataset.read_bytes(found[1][5]).decode().splitlines()[-1] == "hello"
    assert rows(dataset, "select snapshot, job, name, value from metrics order by name") == [
        (1, "mine", "acc/top1", 0.5), (1, "mine", "n", 3.0)
    ]  # fmt: skip
    recipe = Recipe.model_validate({"dataset": "d", "sources": [{"kind": "folder", "path": "p"}], "jobs": [job]})
    assert missing(recipe, dataset, 1) == []
    assert missing(recipe, dataset, 2) == [job]


def test_a_failed_command_says_its_last_lines_and_a_retry_is_told_to_go_on(published):
    dataset, manifest = published
    code = """
import os, sys
place = sys.argv[1] + '/kept'
if os.environ['VLMDATA_RESUME'] == '1':
    assert open(place).read() == 'half'
    sys.exit(0)
open(place, 'w').write('half')
for n in range(30): print('line', n)
print('http://h.example/?X-Amz-Signature=secret', file=sys.stderr)
sys.exit(7)
"""
    job = python(code, "{out}")
    with pytest.raises(Ended) as failed:
        run_job(job, dataset, manifest)
    lines = str(failed.value).splitlines()
    assert "failed with exit code 7; its log is" in lines[0]
    assert [line.strip() for line in lines[1:20]] == [f"line {n}" for n in range(11, 30)]
    assert len(lines) == 21
    assert "secret" not in str(failed.value)
    assert failed.value.exit_code == 3
    assert rows(dataset, "select state, exit_code from jobs where seconds is not null") == [("failed", 7)]
    run_job(job, dataset, manifest)
    assert rows(dataset, "select state, exit_code from jobs order by started_at, seconds nulls first")[-1] == (
        "done",
        0,
    )


def test_what_is_no_program_and_what_is_no_metric_is_said(published):
    dataset, manifest = published
    with pytest.raises(JobError, match="'no-such-program' cannot be started: there is no such program"):
        run_job(command("no-such-program", name="none"), dataset, manifest)
    code = "import sys; open(sys.argv[1] + '/metrics.json', 'w').write('{\"a\": {\"b\": 1}}')"
    with pytest.raises(JobError, match="names with numbers are expected"):
        run_job(python(code, "{out}", name="nested"), dataset, manifest)
    states = rows(dataset, "select job, state from jobs where state <> 'running' order by job")
    assert states == [("nested", "failed"), ("none", "failed")]


def test_a_timeout_ends_the_whole_group(published):
    dataset, manifest = published
    code = """
import subprocess, sys
child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])
open(sys.argv[1] + '/pid', 'w').write(str(child.pid))
child.wait()
"""
    job = python(code, "{out}", timeout=2)
    with pytest.raises(Ended, match="ended after its timeout of 2 s"):
        run_job(job, dataset, manifest)
    assert gone(int((Attempt(job, dataset, manifest).folder / "pid").read_text()))


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGKILL])
def test_ending_the_run_ends_its_command(tmp_path, sign):
    code = "import os, sys, time; open(sys.argv[1], 'w').write(str(os.getpid())); time.sleep(60)"
    driver = f"""
import pathlib, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
from vlmdata.jobs.local import run_process
run_process([sys.executable, '-c', {code!r}, {str(tmp_path / "pid")!r}], {{}}, pathlib.Path({str(tmp_path / "log")!r}))
"""
    run = subprocess.Popen([sys.executable, "-c", driver], stderr=subprocess.DEVNULL)
    until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
    run.send_signal(sign)
    run.wait(20)
    assert gone(int((tmp_path / "pid").read_text()))


def test_torchrun_starts_any_program_in_several_processes(published):
    dataset, manifest = published
    code = "import os, sys; open(f\"{sys.argv[1]}/rank{os.environ['RANK']}\", 'w').write(os.environ['WORLD_SIZE'])"
    job = python(code, "{out}", on={"kind": "torchrun", "processes": 2})
    run_job(job, dataset, manifest)
    folder = Attempt(job, dataset, manifest).folder
    assert [(folder / f"rank{rank}").read_text() for rank in (0, 1)] == ["2", "2"]


def test_llavas_data_is_written_once_and_its_command_takes_over(published):
    dataset, manifest = published
    code = (
        "import json, sys; from pathlib import Path; out = Path(sys.argv[1]); entries = json.loads((out / 'train.json')"
        ".read_text()); assert all((out / 'images' / e['image']).read_bytes()[:2] == b'\\xff\\xd8' for e in entries); "
        "print(len(entries), entries[0]['conversations'][1]['value'])"
    )
    job = command("{python}", "recipes/llava.py", "{out}", "{parquet}", "--", "{python}", "-c", code, "{out}")
    run_job(job, dataset, manifest)
    last = Attempt(job, dataset, manifest).last_lines()[-1]
    assert last.startswith(f"{manifest['splits']['train']} a house number ")


def test_the_queries_of_the_docs_are_answered(published):
    dataset, manifest = published
    code = "import json, sys; json.dump({'retrieval/image_to_text/R@10': 0.5}, open(sys.argv[1], 'w'))"
    run_job(python(code, "{out}/metrics.json", name="mine"), dataset, manifest)
    queries = re.findall(r'vlmdata sql DATASET "\n(.*?)"\n', Path("docs/jobs.md").read_text(), re.DOTALL)
    assert [rows(dataset, query) for query in queries] == [[(1, "mine", 0.5)], [(1, "mine", "done", 0)]]


def test_a_job_on_an_object_store_leaves_its_small_files_there(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    dataset = Dataset("memory://jobs-of-a-test/data")
    code = "import json, sys; print('hello'); json.dump({'acc': 0.5}, open(sys.argv[1], 'w'))"
    job = python(code, "{out}/metrics.json", name="far")
    manifest = {"number": 1, "splits": {"train": 3}, "shards": []}
    assert run_job(job, dataset, manifest) == {"acc": 0.5}
    folder = Attempt(job, dataset, manifest).output
    assert dataset.read_bytes(f"{folder}/log.txt").endswith(b"hello\n")
    assert (tmp_path / "vlmdata").is_dir()
    fails = python("print('no'); raise SystemExit(4)", name="fails")
    with pytest.raises(Ended, match=r"exit code 4.*\n  no$"):
        run_job(fails, dataset, manifest)


def test_where_a_job_runs_is_no_part_of_its_key_but_the_number_of_processes_is():
    job = {"kind": "train", "steps": 3}
    on = ["local", "torchrun", {"kind": "slurm", "partition": "a"}, {"kind": "deployment", "name": "train/gpu"}]
    assert len({job_key(TypeAdapter(Job).validate_python({**job, "on": place})) for place in on}) == 1
    several = [{"kind": "torchrun", "processes": 4}, {"kind": "slurm", "processes": 2, "nodes": 2}]
    keys = {job_key(TypeAdapter(Job).validate_python({**job, "on": place})) for place in several}
    assert len(keys) == 1
    assert keys != {job_key(TypeAdapter(Job).validate_python(job))}


def test_a_training_elsewhere_is_the_command_line_on_that_snapshot(published):
    dataset, manifest = published
    job = TypeAdapter(Job).validate_python(
        {"kind": "train", "steps": 2, "batch": 4, "workers": 0, "lr": 0.00001, "on": "torchrun"}
    )
    attempt = Attempt(job, dataset, manifest)
    attempt.begin()
    given = arguments(attempt)
    assert given[given.index("--data") + 1].endswith("/data@000001")
    dataset.publish({**manifest, "number": 2, "parent": 1, "shards": []})  # newer, and without any shards
    assert run_process(given, {"VLMDATA_JOB": "train", "RANK": "0"}, attempt.log) == 0
    assert attempt.metrics()["train/samples"] == manifest["splits"]["train"]
    assert dataset.read_table("metrics", "log") is None, "the run that started it records them"
    same = by_hand.from_options("contrastive", attempt.folder / "config.json", ["steps=3"])
    assert same == job.model_copy(update={"steps": 3, "on": same.on})


def test_what_no_snapshot_is_called_is_refused(published):
    dataset, _ = published
    assert tags.find(f"{dataset.root}@1")[1]["number"] == 1
    with pytest.raises(InputError, match="has no snapshot 3: the newest one is 1"):
        source.shards(f"{dataset.root}@000003")
    with pytest.raises(InputError, match="neither a dataset"):
        source.shards(f"{dataset.root}x@000001")


def test_a_training_by_hand_beside_a_run_keeps_its_metrics_in_its_folder(published, tmp_path, caplog):
    from vlmdata.jobs.record import record_by_hand
    from vlmdata.lock import lock

    dataset, _ = published
    job = TypeAdapter(Job).validate_python({"kind": "train"})
    with lock(dataset, "vlmdata run"):
        assert not record_by_hand(dataset, 1, job, tmp_path, datetime.datetime.now(datetime.UTC), {"a": 1.0})
    assert "metrics.json alone" in caplog.text
    assert "vlmdata run" in caplog.text
    assert dataset.read_table("metrics", "log") is None


def test_parts_of_jobs_without_the_newer_columns_are_read(published):
    dataset, manifest = published
    schema = table_schema("jobs")
    old = pa.schema([field for field in schema if field.name != "log"])
    row = dict.fromkeys(old.names) | {"snapshot": 1, "job": "old", "kind": "train", "state": "done", "exit_code": 0}
    part = dataset.write_part("jobs", "log", "000001-0000000", pa.Table.from_pylist([row], old), {})
    dataset.write_table(Table("jobs", "log", (part,)))
    assert rows(dataset, "select job, log from jobs") == [("old", None)]
    run_job(python("pass", name="new"), dataset, manifest)
    found = rows(dataset, "select job, log is null from jobs where state = 'done' order by job")
    assert found == [("new", False), ("old", True)]


def gone(pid):
    """Whether a process ends within some seconds (a zombie has ended)."""
    path = Path(f"/proc/{pid}/stat")
    return until(lambda: not path.exists() or path.read_text().rpartition(")")[2].split()[0] == "Z")


def until(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)
    return True


def test_only_the_first_process_of_torchrun_speaks(published, tmp_path, monkeypatch, capsys):
    from vlmdata.cli import models as cli
    from vlmdata.train import loop

    def trained(job, shards, out, resume):
        Path(out).mkdir(exist_ok=True)
        logging.getLogger("vlmdata.train").info("a step")
        return {"loss": 1.0}

    monkeypatch.setattr(loop, "train", trained)
    dataset, _ = published
    level = logging.getLogger("vlmdata").level
    try:
        for rank, said in (("1", ""), ("0", '{\n "loss": 1.0\n}\n')):
            monkeypatch.setenv("RANK", rank)
            logging.getLogger("vlmdata").setLevel(logging.INFO)
            cli.train("contrastive", dataset.root, tmp_path / "out")
            assert capsys.readouterr().out == said
            assert (tmp_path / "out/metrics.json").exists() == (rank == "0")
    finally:
        logging.getLogger("vlmdata").setLevel(level)
    assert rows(dataset, "select snapshot, name, value from metrics") == [(1, "loss", 1.0)]
