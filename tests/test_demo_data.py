"""The demo's script: fetching, laying out and serving, on packages that the tests build."""

import http.client
import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).resolve().parent.parent / "recipes" / "demo_data.py"
SVG = """<svg xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#" xmlns:dc="http://purl.org/dc/elements/1.1/"
 xmlns:cc="http://web.resource.org/cc/"><metadata><rdf:RDF><cc:Work><dc:title>{title}</dc:title>
 <dc:description>someone@example.org</dc:description><dc:subject><rdf:Bag><rdf:li>hash</rdf:li><rdf:li>big_dog</rdf:li>
 <rdf:li/></rdf:Bag></dc:subject><cc:license rdf:resource="http://example.org/free"/></cc:Work></rdf:RDF></metadata></svg>
"""


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("demo_data", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


demo = load()
needs_dpkg = pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="dpkg-deb builds the packages of this test")


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose name has a space, and an apt-get that finds the packages that stand in for Debian's."""
    store = tmp_path / "store"
    store.mkdir()
    for language in ("en", "de"):
        manual = f"usr/share/gimp/2.0/help/{language}"
        files = {f"{manual}/index.html": b"<p>manual", f"{manual}/images/a.png": b"png"}
        build(store, f"gimp-help-{language}", files, {f"{manual}/images/link.png": "/etc/passwd"})
    folders = [f"usr/share/openclipart/{{}}/{name}" for name in ("a/one", "a/two", "b/three", "b/untitled")]
    svgs = {
        f"{name.format('svg')}.svg": SVG.format(title=f"The &lt;&amp;amp; {name[-3:]}").encode() for name in folders[:3]
    }
    build(store, "openclipart-svg", svgs | {f"{folders[3].format('svg')}.svg": b"<svg"})
    build(store, "openclipart-png", {f"{name.format('png')}.png": name.encode() for name in folders})
    tools = tmp_path / "tools"
    tools.mkdir()
    apt = tools / "apt-get"
    apt.write_text(
        f"#!/bin/sh\necho call >> '{tmp_path}/calls'\nfor name; do :; done\ncp '{store}/'\"$name\"_*.deb . 2>/dev/null"
        ' && exit 0\necho "E: Unable to locate package $name" >&2\nexit 100\n'
    )
    apt.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    return tmp_path / "a clone" / ".cache" / "demo"


def build(store: Path, name: str, files: dict[str, bytes], links: dict[str, str] | None = None) -> None:
    tree = store / name
    for path, data in {"DEBIAN/control": control(name), **files}.items():
        (tree / path).parent.mkdir(parents=True, exist_ok=True)
        (tree / path).write_bytes(data)
    for path, target in (links or {}).items():
        (tree / path).symlink_to(target)
    subprocess.run(["dpkg-deb", "-b", "-Znone", str(tree), str(store / f"{name}_1_all.deb")], check=True, stdout=-3)


def control(name: str) -> bytes:
    return f"Package: {name}\nVersion: 1\nArchitecture: all\nMaintainer: test\nDescription: test\n".encode()


def tree(root: Path) -> dict[str, bytes]:
    kept = [path for path in root.rglob("*") if path.is_file() and "packages" not in path.parts]
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(kept)}


@needs_dpkg
def test_fetch_lays_out_the_site_and_the_pictures_and_then_finds_them(root: Path, tmp_path: Path) -> None:
    assert demo.fetch(root) == ["site/gimp-help-en", "site/gimp-help-de", "openclipart"]
    first = tree(root)
    assert {name for name in first if name.startswith("site/")} == {
        "site/index.html", "site/robots.txt", "site/gimp-help-en/index.html", "site/gimp-help-en/images/a.png",
        "site/gimp-help-de/index.html", "site/gimp-help-de/images/a.png",
    }  # fmt: skip
    assert {name for name in first if name.startswith("openclipart/")} == {
        f"openclipart/{name}{end}" for name in ("a/one", "a/two", "b/three") for end in (".png", ".json")
    }, "an image without a title makes no pair"
    assert json.loads(first["openclipart/a/one.json"]) == {
        "title": "The <& one", "keywords": ["big dog"], "license": "http://example.org/free",
    }  # fmt: skip
    assert not any(path.is_symlink() for path in root.rglob("*"))
    calls = (tmp_path / "calls").read_text()
    start = time.perf_counter()
    assert demo.fetch(root) == []
    assert time.perf_counter() - start < 0.2
    assert (tmp_path / "calls").read_text() == calls


@needs_dpkg
def test_an_interrupted_fetch_is_repaired(root: Path) -> None:
    demo.fetch(root)
    whole = tree(root)
    shutil.rmtree(root / "openclipart")
    (root / "aside/left").mkdir(parents=True)
    (root / "packages/aside-x").mkdir()
    assert demo.fetch(root) == ["openclipart"]
    assert tree(root) == whole
    (root / f"layout-{demo.LAYOUT}").rename(root / "layout-0")
    assert len(demo.fetch(root)) == 3, "another layout is made anew"
    assert tree(root) == whole


@needs_dpkg
def test_a_package_that_is_broken_or_not_there_is_one_line(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root.mkdir(parents=True)
    (root / "packages").mkdir()
    (root / "packages/gimp-help-en_1_all.deb").write_bytes(b"half")
    with pytest.raises(demo.Problem, match=r"gimp-help-en_1_all.deb: .*delete it and call again"):
        demo.fetch(root)
    monkeypatch.setattr(demo.os, "geteuid", lambda: 0)
    with pytest.raises(demo.Problem, match=r"apt-get cannot download nothing.*: E: Unable to locate package nothing"):
        demo.debian("nothing", root / "packages")
    monkeypatch.setattr(demo.os, "geteuid", lambda: 1000)
    with pytest.raises(demo.Problem, match="try: sudo apt-get update"):
        demo.debian("nothing", root / "packages")


def test_paths_in_a_package_stay_in_the_folder(tmp_path: Path) -> None:
    for name in ("../x", "a/../../x", "/x"):
        with pytest.raises(demo.Problem, match="leads out of it"):
            demo._write(tmp_path / "out", name, b"")
    assert not (tmp_path / "x").exists()


def test_metadata_that_cannot_be_read_is_none() -> None:
    bomb = b'<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;">]><x>&b;'
    for svg in (b"", b"\x00\xff", b"<svg/>", bomb, b'<svg xmlns:c="x:"><c:Work>'):
        assert demo.rdf_metadata(svg) == {}


def test_the_choice_is_the_same_everywhere_spread_and_has_some_junk() -> None:
    titles = {f"{folder}/{n}.png": f"title {folder} {n}" for folder in "abc" for n in range(100)}
    titles |= {f"d/{n}.png": "Part of a collection" for n in range(500)} | {"a/x.png": "star"}
    chosen = demo.choose(titles, 60, 12)
    assert chosen == demo.choose(dict(reversed(titles.items())), 60, 12)
    folders = Counter(name[0] for name in chosen)
    assert len(chosen) == 60
    assert sum(titles[name] == "Part of a collection" for name in chosen) == 11
    assert "a/x.png" in chosen
    assert set(folders) == set("abcd")
    assert max(folders[f] for f in "bc") - min(folders[f] for f in "bc") <= 1


@pytest.fixture
def site(tmp_path: Path) -> Iterator[tuple[Path, int]]:
    root = tmp_path / "the site"
    (root / "sub").mkdir(parents=True)
    (root / "empty").mkdir()
    (tmp_path / "secret.txt").write_text("secret")
    (root / "out.txt").symlink_to(tmp_path / "secret.txt")
    for name, data in {"index.html": b"<p>hi", "sub/index.html": b"sub", "a b.png": b"png", "x.unknown": b"x"}.items():
        (root / name).write_bytes(data)
    server = demo.Server(root, ("127.0.0.1", 0))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield root, server.server_port
    server.shutdown()
    server.server_close()


def test_the_site_is_served_with_types_over_one_connection(site: tuple[Path, int]) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", site[1], timeout=10)
    connection.connect()
    first = connection.sock
    for path, status, kind, body in (
        ("/", 200, "text/html; charset=utf-8", b"<p>hi"),
        ("/index.html?query", 200, "text/html; charset=utf-8", b"<p>hi"),
        ("/sub/", 200, "text/html; charset=utf-8", b"sub"),
        ("/a%20b.png", 200, "image/png", b"png"),
        ("/x.unknown", 200, "application/octet-stream", b"x"),
        ("/nothing", 404, "text/plain; charset=utf-8", b"not found\n"),
        ("/index.html/", 404, "text/plain; charset=utf-8", b"not found\n"),
        ("/empty/", 404, "text/plain; charset=utf-8", b"not found\n"),
    ):
        connection.request("GET", path)
        answer = connection.getresponse()
        assert (answer.status, answer.getheader("Content-Type"), answer.read()) == (status, kind, body), path
    connection.request("HEAD", "/")
    assert connection.getresponse().read() == b""
    connection.request("GET", "/sub")
    assert connection.getresponse().getheader("Location") == "/sub/"
    assert connection.sock is first, "the connection was kept"
    connection.close()


@pytest.mark.parametrize(
    "path",
    [
        "/../secret.txt",
        "/%2e%2e/secret.txt",
        "/sub/../../secret.txt",
        "/..%2fsecret.txt",
        "//../secret.txt",
        "/out.txt",
        "/a%00b",
        "x",
    ],
)
def test_no_path_leads_out_of_the_site(site: tuple[Path, int], path: str) -> None:
    with socket.create_connection(("127.0.0.1", site[1]), timeout=10) as raw:
        raw.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        answer = b"".join(iter(lambda: raw.recv(4096), b""))
    assert answer.startswith(b"HTTP/1.1 404 ")
    assert b"secret" not in answer


def serve(root: Path, port: int, command: list[str]) -> list[str]:
    code = (
        f"import sys; sys.path.insert(0, {str(SCRIPT.parent)!r}); import demo_data; from pathlib import Path\n"
        f"try: sys.exit(demo_data.serve(Path({str(root)!r}), {command!r}, ('127.0.0.1', {port})))\n"
        "except demo_data.Problem as problem: sys.exit(str(problem))"
    )
    return [sys.executable, "-c", code]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_command_runs_while_the_site_is_served_and_its_exit_code_comes_back(site: tuple[Path, int]) -> None:
    port = free_port()
    ask = (
        "import sys, urllib.request as r;"
        f"sys.exit(7 if r.urlopen('http://127.0.0.1:{port}/').read() == b'<p>hi' and sys.argv[1] == '$(x) ;' else 1)"
    )
    command = [sys.executable, "-c", ask, "$(x) ;"]
    assert subprocess.run(serve(site[0], port, command), timeout=30).returncode == 7
    killed = [sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"]
    assert subprocess.run(serve(site[0], port, killed), timeout=30).returncode == 128 + 9
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=5)


def test_a_busy_port_or_a_missing_command_is_one_line(site: tuple[Path, int]) -> None:
    result = subprocess.run(serve(site[0], site[1], ["true"]), capture_output=True, text=True, timeout=30)
    assert (result.returncode, result.stderr.count("\n")) == (1, 1)
    assert f"127.0.0.1:{site[1]} cannot be served on" in result.stderr
    missing = subprocess.run(serve(site[0], free_port(), ["./none"]), capture_output=True, text=True, timeout=30)
    assert "./none: cannot be run" in missing.stderr


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 5), (signal.SIGTERM, 128 + 15), (signal.SIGKILL, -9)])
def test_the_command_and_the_server_end_together(
    site: tuple[Path, int], tmp_path: Path, number: int, code: int
) -> None:
    sleeper = (
        "import os, sys, time, pathlib\n"
        f"pathlib.Path({str(tmp_path / 'pid')!r}).write_text(str(os.getpid()))\n"
        "try: time.sleep(60)\nexcept KeyboardInterrupt: sys.exit(5)"
    )
    running = subprocess.Popen(serve(site[0], free_port(), [sys.executable, "-c", sleeper]), start_new_session=True)
    wait_for(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text() != "")
    time.sleep(0.2)
    if number == signal.SIGINT:
        os.killpg(running.pid, number)  # what Ctrl-C does: the whole group gets it
    else:
        running.send_signal(number)
    assert running.wait(timeout=20) == code
    pid = int((tmp_path / "pid").read_text())
    wait_for(
        lambda: not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2]
    )


def wait_for(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not true():
        assert time.monotonic() < end, "it did not come about in 20 seconds"
        time.sleep(0.05)
