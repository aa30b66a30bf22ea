"""What production does to a run: kills, full disks, lost networks, flipped bytes, other clocks, missing permissions.

Every time there is a clear error or a finished run, never a wrong success; and when the cause is gone, the same command
ends with the bytes of a run that nothing has disturbed.
"""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from conftest import content, here, make_photos, prefect_server, vlmdata, write_recipe

KILLS = 50
# Root without what lets it past permissions: another user could not reach a Python in root's own folder.
UNPRIVILEGED = ["setpriv", "--inh-caps=-dac_override,-dac_read_search,-fowner",
                "--bounding-set=-dac_override,-dac_read_search,-fowner", "--"]  # fmt: skip
# faketime, not the jump itself, ends a sleep that lasts through the jump with EINVAL: that of the thread that tells
# Prefect that a flow is alive.
HEARTBEAT = (
    r"Exception in thread .{,2000} in heartbeat_loop\n *time\.sleep\(1\)\n *OSError: \[Errno 22\] Invalid argument\n"
)
ALL_LANGUAGES = ("--set", "select.rules.english=lang is not null")


@pytest.fixture(scope="module")
def undisturbed(made):
    return content(made / "runs/it")


@pytest.fixture
def folder(made, tmp_path):
    """The photos and the recipe of `made`, without the dataset."""
    return fresh(made, tmp_path)


def fresh(made, parent):
    folder = parent / made.name
    folder.mkdir()
    shutil.copytree(made / "photos", folder / "photos")
    write_recipe(folder)
    return folder


def begin(folder, *more, what="run", wrap=(), **environment):
    """The run, or a refresh, as a process group of its own."""
    command = [*wrap, sys.executable, "-m", "vlmdata.cli", what, "recipe.yaml", *more]
    variables = {**os.environ, "PREFECT_HOME": str(folder / ".prefect"), "PREFECT_API_URL": prefect_server()}
    return subprocess.Popen(
        command, cwd=folder, env=variables | environment, text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def told(run, but=None):
    """(exit code, the error's line) of a process that ends by itself; never a traceback, but for one that matches."""
    _, err = run.communicate(timeout=300)
    err = re.sub(but, "", err, flags=re.DOTALL) if but else err
    assert "Traceback" not in err, err
    return run.returncode, next((line for line in err.splitlines() if line.startswith("error: ")), "")


def ends_alike(folder, undisturbed, *more):
    again = vlmdata(folder, "run", "recipe.yaml", *more)
    assert again.returncode == 0, again.stderr
    assert content(folder / "runs/it") == undisturbed
    checked = here(folder, "verify", "runs/it")
    assert checked.returncode == 0, checked.stdout


def test_killed_at_random_moments(made, undisturbed, tmp_path):
    draw = random.Random(7)
    calm = fresh(made, tmp_path)
    start = time.monotonic()
    assert told(begin(calm)) == (0, "")
    whole = time.monotonic() - start
    assert content(calm / "runs/it") == undisturbed
    kills = datasets = 0
    while kills < KILLS:
        datasets += 1
        parent = tmp_path / str(datasets)
        parent.mkdir()
        folder = fresh(made, parent)
        for _ in range(6):  # as often as that, then it may end
            run = begin(folder)
            try:
                run.communicate(timeout=draw.uniform(0.1, 0.9) * whole)
            except subprocess.TimeoutExpired:
                os.killpg(run.pid, signal.SIGKILL)
                run.communicate()
                kills += 1
                continue
            assert run.returncode == 0
            break
        ends_alike(folder, undisturbed)
        shutil.rmtree(parent)


def test_a_refresh_killed_at_random_moments(made, tmp_path):
    """The snapshot before stays in force and whole, and the last refresh has the bytes of one that nobody killed."""

    def grown(name):
        folder = tmp_path / name / made.name
        shutil.copytree(made, folder)
        for number in (30, 31):
            for ending in ("jpg", "txt"):
                shutil.copy(folder / f"photos/0{number - 30}.{ending}", folder / f"photos/{number}.{ending}")
            (folder / f"photos/{number}.txt").write_text(f"a picture that is new, number {number}, in the park")
        return folder

    folder = grown("calm")
    start = time.monotonic()
    assert begin(folder, what="refresh").wait(300) == 0
    whole = time.monotonic() - start
    expected = content(folder / "runs/it")
    assert any(name.startswith("snapshots/000002/") for name in expected)
    folder = grown("disturbed")
    first = {name: data for name, data in content(folder / "runs/it").items() if name.startswith("snapshots/000001/")}
    draw = random.Random(8)
    for _ in range(10):
        run = begin(folder, what="refresh")
        try:
            run.communicate(timeout=draw.uniform(0.1, 0.9) * whole)
        except subprocess.TimeoutExpired:
            os.killpg(run.pid, signal.SIGKILL)
            run.communicate()
        now = content(folder / "runs/it")
        assert {name: now.get(name) for name in first} == first
        assert here(folder, "verify", "runs/it").returncode == 0
    assert begin(folder, what="refresh").wait(300) == 0
    assert content(folder / "runs/it") == expected


def test_a_removal_killed_at_random_moments(made, widened, tmp_path):
    """`gc` of the first snapshot: the second stays in force and whole, and the last gc leaves what an unkilled one
    does."""

    def two_snapshots(name):
        folder = tmp_path / name / made.name
        shutil.copytree(made, folder)
        assert here(folder, "run", "recipe.yaml", *ALL_LANGUAGES).returncode == 0
        assert content(folder / "runs/it") == widened
        return folder

    def collect(folder):
        command = [sys.executable, "-m", "vlmdata.cli", "gc", "runs/it", "--keep", "1", "--yes"]
        return subprocess.Popen(
            command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
        )

    folder = two_snapshots("calm")
    start = time.monotonic()
    assert collect(folder).wait(300) == 0
    whole = time.monotonic() - start
    expected = content(folder / "runs/it")
    assert not any(name.startswith("snapshots/000001/") for name in expected)
    draw = random.Random(9)
    for number in range(5):
        folder = two_snapshots(str(number))
        for _ in range(4):
            run = collect(folder)
            try:
                run.communicate(timeout=draw.uniform(0.6, 1.0) * whole)  # before that it imports
            except subprocess.TimeoutExpired:
                os.killpg(run.pid, signal.SIGKILL)
                run.communicate()
            assert here(folder, "verify", "runs/it").returncode == 0
        assert collect(folder).wait(300) == 0
        assert content(folder / "runs/it") == expected
        shutil.rmtree(folder.parent)


@pytest.mark.parametrize("share", [0.05, 0.3, 0.6, 0.9])
def test_a_full_disk(folder, undisturbed, share):
    """The dataset lies on a tmpfs that is too small; then on one that is large enough."""
    disk = folder / "runs"
    disk.mkdir()
    size = round(share * sum(len(data) for data in undisturbed.values()))
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={max(size, 65536)}", "tmpfs", disk], capture_output=True, text=True
    )
    assert mounted.returncode == 0, f"this test mounts a small tmpfs, as root: {mounted.stderr}"
    try:
        code, error = told(begin(folder))
        assert code == 4, error
        assert "No space left" in error or "free" in error, error
        assert not (disk / "it/latest.json").exists()
        subprocess.run(["mount", "-o", "remount,size=2G", disk], check=True)
        ends_alike(folder, undisturbed)
    finally:
        subprocess.run(["umount", disk], check=True)


class Network:
    """Pictures on loopback, until it is gone; `asked` counts."""

    def __init__(self, photos):
        self.files = {f"/{path.name}": path.read_bytes() for path in photos.glob("*.jpg")}
        self.asked, self.after, self.gone, self.port = 0, None, threading.Event(), 0

    def start(self):
        network = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                path = self.path.partition("?")[0]
                network.asked += path in network.files
                if network.after is not None and network.asked > network.after:
                    network.gone.set()
                    self.connection.close()
                    return
                body = network.files.get(path, b"")
                self.send_response(200 if body else 404)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self.port = self.server.server_port
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def stop(self):
        self.server.shutdown()
        self.server.server_close()


def test_the_network_goes_away(made, tmp_path):
    """550 URLs in parts of 50; the server goes amid the second. The run stops instead of recording what the URLs are
    not at fault for, and goes on when the server is back."""
    network = Network(made / "photos")
    network.start()

    def listed(name):
        folder = tmp_path / name
        folder.mkdir()
        lines = ["URL,TEXT"]
        for n in range(550):
            path = list(network.files)[n % len(network.files)]
            lines.append(f"http://127.0.0.1:{network.port}{path}?{n},a photo of the number {n} in the park")
        (folder / "list.csv").write_text("\n".join(lines))
        write_recipe(
            folder,
            sources=[{"kind": "table", "name": "list", "path": "list.csv", "url": "URL", "caption": "TEXT"}],
            download={"size": 96, "allow_hosts": [f"127.0.0.1:{network.port}"], "retries": 0, "timeout": 5},
            signals=["text", "image"], select={"rules": {"words": "words >= 3"}}, jobs=[], parts={"rows": 50},
        )  # fmt: skip
        return folder

    assert vlmdata(listed("calm"), "run", "recipe.yaml").returncode == 0
    expected = content(tmp_path / "calm/runs/it")
    folder = listed("disturbed")
    network.after, network.asked = 75, 0
    run = begin(folder)
    assert network.gone.wait(120)
    network.stop()
    code, error = told(run)
    assert code == 4, error
    assert "pairs ended as" in error
    network.after = None
    network.start()
    ends_alike(folder, expected)
    network.stop()


def damaged(path, how):
    data = bytearray(path.read_bytes())
    if how == "flipped":
        data[len(data) // 2] ^= 1
    else:
        del data[-6:]
    path.write_bytes(data)


KINDS = {
    "pairs": "tables/pairs/*/*.parquet",
    "text": "tables/text/*/*.parquet",
    "embeddings": "tables/embeddings_clip/*/*.parquet",
    "duplicates": "tables/duplicates/*/*.parquet",
    "images' table": "images/*/*.parquet",
    "images": "images/*/*.tar",
    "table's manifest": "tables/text/*/manifest.json",
    "samples": "snapshots/000001/samples/*.parquet",
    "shard": "snapshots/000001/shards/*.tar",
    "Parquet shard": "snapshots/000001/shards/*.parquet",
    "snapshot's manifest": "snapshots/000001/manifest.json",
    "report": "snapshots/000001/report.html",
    "latest": "latest.json",
}


@pytest.mark.parametrize("how", ["flipped", "truncated"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_file(made, widened, tmp_path, kind, how):
    """verify names it; a run that needs it stops and names it, and one that does not need it gives the right bytes."""
    shutil.copytree(made, tmp_path / made.name)
    folder = tmp_path / made.name
    path = sorted((folder / "runs/it").glob(KINDS[kind]))[0]
    whole = path.read_bytes()
    damaged(path, how)
    name = path.relative_to(folder / "runs/it").as_posix()
    checked = here(folder, "verify", "runs/it")
    assert checked.returncode == 1, checked.stderr
    assert name in {line.split("\t")[0] for line in checked.stdout.splitlines()}, checked.stdout
    run = here(folder, "run", "recipe.yaml", *ALL_LANGUAGES)
    if run.returncode:
        assert run.returncode in (1, 4), run.stderr
        assert "Traceback" not in run.stderr
        assert path.name in run.stderr, run.stderr
    else:
        found = content(folder / "runs/it")
        assert {n: data for n, data in found.items() if n != name} == {n: d for n, d in widened.items() if n != name}
    path.write_bytes(whole)
    again = here(folder, "run", "recipe.yaml", *ALL_LANGUAGES)
    assert again.returncode == 0, again.stderr
    assert content(folder / "runs/it") == widened


@pytest.fixture(scope="module")
def widened(made, tmp_path_factory):
    """What the second snapshot of `made` is, where nothing is damaged."""
    folder = tmp_path_factory.mktemp("widened") / made.name
    shutil.copytree(made, folder)
    assert vlmdata(folder, "run", "recipe.yaml", *ALL_LANGUAGES).returncode == 0
    return content(folder / "runs/it")


def test_a_damaged_part_is_made_again_where_its_manifest_is_removed(made, widened, tmp_path):
    shutil.copytree(made, tmp_path / made.name)
    folder = tmp_path / made.name
    path = sorted((folder / "runs/it").glob(KINDS["text"]))[0]
    damaged(path, "flipped")
    path.unlink()
    (path.parent / "manifest.json").unlink()
    again = vlmdata(folder, "run", "recipe.yaml", *ALL_LANGUAGES)
    assert again.returncode == 0, again.stderr
    assert content(folder / "runs/it") == widened


def test_two_runs_of_one_dataset(folder, undisturbed):
    first = begin(folder)
    while not (folder / "runs/it/lock.json").exists():
        assert first.poll() is None
        time.sleep(0.05)
    code, error = told(begin(folder))
    assert code == 5, error
    assert str(first.pid) in error
    assert told(first) == (0, "")
    ends_alike(folder, undisturbed)


@pytest.mark.parametrize("jump", ["+400d", "-400d"])
def test_the_clock_moves_while_it_runs(folder, undisturbed, jump):
    clock = folder / "clock"
    clock.write_text("+0")
    run = begin(
        folder, wrap=["faketime", "-f", "+0"], FAKETIME_TIMESTAMP_FILE=str(clock), FAKETIME_NO_CACHE="1",
        FAKETIME_DONT_FAKE_MONOTONIC="1",
    )  # fmt: skip
    while not (folder / "runs/it/images").exists():
        assert run.poll() is None, run.communicate()
        time.sleep(0.05)
    clock.write_text(jump)
    assert told(run, but=HEARTBEAT) == (0, "")
    ends_alike(folder, undisturbed)


@pytest.mark.parametrize("where", ["", "tables", "images", "snapshots"])
def test_missing_permissions(made, undisturbed, where):
    """As an unprivileged process, since root is let through."""
    with tempfile.TemporaryDirectory(prefix="vlmdata-faults-") as name:
        Path(name).chmod(0o755)
        folder = fresh(made, Path(name))
        locked = folder / "runs/it" / where
        locked.mkdir(parents=True)
        locked.chmod(0o555)
        code, error = told(begin(folder, wrap=UNPRIVILEGED))
        assert code == (4 if where else 2), error  # another folder may be chosen, or its permissions changed
        assert "ermission denied" in error, error
        locked.chmod(0o755)
        assert told(begin(folder, wrap=UNPRIVILEGED)) == (0, "")
        assert content(folder / "runs/it") == undisturbed


def test_photos_that_cannot_be_read_are_named(made):
    with tempfile.TemporaryDirectory(prefix="vlmdata-faults-") as name:
        Path(name).chmod(0o755)
        folder = Path(name) / "it"
        folder.mkdir()
        make_photos(folder / "photos")
        write_recipe(folder, jobs=[])
        (folder / "photos/03.jpg").chmod(0)
        code, error = told(begin(folder, wrap=UNPRIVILEGED))
        if code == 0:  # the pair keeps its row, with the reason
            rows = here(folder, "sql", "runs/it", "select url, reason from samples where url like '%03.jpg'",
                        "--format", "json")  # fmt: skip
            assert [row["reason"].split(":")[0] for row in json.loads(rows.stdout)] == ["download"]
        else:
            assert "03.jpg" in error
