"""A folder of pictures with captions, and a dataset that the real command line made of it."""

import atexit
import contextlib
import io
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

# Each worker has one core, and so have the processes that it starts. Before torch and numpy read it.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Each worker has a database of Prefect's own, which is set up once. Before Prefect reads it.
os.environ["PREFECT_HOME"] = tempfile.mkdtemp(prefix="prefect-of-tests-")
atexit.register(shutil.rmtree, os.environ["PREFECT_HOME"], ignore_errors=True)
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
os.environ.setdefault("PREFECT_LOGGING_LEVEL", "CRITICAL")
# On a machine at its limit the server that a flow starts takes longer than 20 seconds.
os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "120")

import cv2
import numpy as np
import pytest
import yaml
from filelock import FileLock

RECIPE = {
    "sources": [{"kind": "folder", "name": "photos", "path": "photos"}],
    "download": {"size": 96},
    "signals": [
        "text",
        "language",
        "image",
        {"kind": "clip", "model": "lite", "after": ["words"], "batch": 8},
    ],
    "dedup": ["exact", {"kind": "perceptual", "distance": 4}],
    "select": {"rules": {"words": "words >= 3", "english": "lang = 'en'", "aligned": "clip_score >= -1"}},
    "shards": {"samples": 8, "splits": {"train": 0.7, "test": 0.3}},
    "parts": {"rows": 10},
    "jobs": [{"kind": "train", "steps": 4, "batch": 8, "save_every": 2}],
}
# The files that take longest: begun first, so that no worker has one alone at the end.
LONG = (
    "test_flow",
    "test_compare",
    "test_jobs_run",
    "test_storage_s3_keeping",
    "test_refresh_sources",
    "test_storage_s3",
    "test_retry",
    "test_refresh",
    "test_runner_dask",
    "test_adopt",
    "test_train_masked",
    "test_consent_run",
    "test_sources_crawl",
    "test_train_drawing",
    "test_forget_returns",
    "test_signals_filter",
)
HOSTILE = "<script>alert(1)</script> a 'quoted' \"caption\" & more; drop table pairs"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG))


def make_photos(folder: Path) -> None:
    """24 different pictures with captions, four of them twice, one that is no image, one with a hostile caption."""
    folder.mkdir()
    draw = np.random.default_rng(0)
    for number in range(24):
        small = draw.integers(0, 255, (6, 8, 3), dtype=np.uint8)
        picture = cv2.resize(small, (160, 120), interpolation=cv2.INTER_CUBIC)
        captions = [f"a photo of the thing with number {number} in the park"]
        if number % 6 == 0:
            captions.append(f"the very same thing number {number} seen once again by us")
        if number == 5:
            captions = [HOSTILE]
        if number == 7:
            captions = ["ein Bild von einem großen alten Haus mit vielen Fenstern"]
        if number == 8:
            captions = ["two words"]
        for copy, caption in enumerate(captions):
            cv2.imwrite(str(folder / f"{number:02d}{'b' * copy}.jpg"), picture)
            (folder / f"{number:02d}{'b' * copy}.txt").write_text(caption, "utf-8")
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 not a picture")
    (folder / "broken.txt").write_text("a photo that cannot be read by anyone", "utf-8")


def write_recipe(folder: Path, **changes: object) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({"dataset": "runs/it", **RECIPE, **changes}, sort_keys=False), "utf-8")
    return path


@cache
def prefect_server() -> str:
    """The URL of the server that all flows of this worker share: the one that flows in its own process start."""
    from prefect.server.api.server import SubprocessASGIServer

    server = SubprocessASGIServer()
    server.start(120)
    return server.api_url


def prefect_home(folder: Path) -> Path:
    """`.prefect` in `folder`, for a server of its own: its database is a copy of the worker's, as making one anew takes
    ten seconds."""
    prefect_server()
    home = folder / ".prefect"
    home.mkdir()
    kept = Path(os.environ["PREFECT_HOME"], "prefect.db")
    with (
        contextlib.closing(sqlite3.connect(kept)) as one,
        contextlib.closing(sqlite3.connect(home / kept.name)) as copy,
    ):
        one.backup(copy)
    return home


def vlmdata(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command line in `folder`."""
    command = [sys.executable, "-m", "vlmdata.cli", *arguments]
    environment = {**os.environ, "PREFECT_HOME": str(folder / ".prefect")}
    if arguments[0] in ("run", "adopt", "compare"):
        environment["PREFECT_API_URL"] = prefect_server()
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


def here(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command line in `folder`, in this process: another one would import all anew."""
    from vlmdata import cli

    out, err = io.StringIO(), io.StringIO()
    with contextlib.chdir(folder), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = cli.guarded(lambda: cli.app(list(arguments), standalone_mode=False))
    return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())


def content(folder: Path) -> dict[str, bytes]:
    """All files that two equal runs must have in common, without the times that DESIGN.md names."""
    apart = ("tables/observations/", "tables/seen/", "tables/jobs/", "tables/metrics/", "jobs/")
    files = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_dir() or name.startswith(apart) or name.endswith(("report.html", "status.json")):
            continue
        files[name] = path.read_bytes()
        if name.startswith("snapshots/") and name.count("/") == 2 and name.endswith("manifest.json"):
            files[name] = json.dumps({**json.loads(files[name]), "created": None}).encode()
    return files


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """A folder with photos/, recipe.yaml and the dataset runs/it; tests must not change it. All workers share it."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    folder = shared / "a folder" / "with [signs] & spaces"
    with FileLock(shared / "made.lock"):
        if (folder / "run.log").exists():
            return folder
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        make_photos(folder / "photos")
        run = vlmdata(folder, "run", str(write_recipe(folder)))
        assert run.returncode == 0, run.stderr
        assert run.stdout.strip() == str(folder / "runs/it/snapshots/000001")
        (folder / "run.log").write_text(run.stderr)
    return folder


def train_twice(folder, jobs):
    """Train in two processes (gloo), one job after the other: their options, the shards and where the run goes. One
    launch for all, since starting two processes takes longer than a small job."""
    (folder / "jobs.json").write_text(json.dumps(jobs))
    (folder / "run.py").write_text(
        "import json, sys\n"
        "from pydantic import TypeAdapter\n"
        "from vlmdata.recipe import Job\n"
        "from vlmdata.train.loop import train\n"
        "for options, shards, out in json.load(open(sys.argv[1])):\n"
        "    train(TypeAdapter(Job).validate_python(options), shards, out)\n"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += [str(folder / "run.py"), str(folder / "jobs.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
