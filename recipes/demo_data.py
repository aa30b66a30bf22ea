"""The demo's data: fetched from Debian's and npm's packages, laid out, and served as a website on loopback.

    python recipes/demo_data.py fetch [--all]         into .cache/demo; --all: also what recipes/lite.yaml reads
    python recipes/demo_data.py serve -- COMMAND …    runs COMMAND while http://127.0.0.1:8741/ shows the site

Needs the standard library, apt-get and dpkg-deb; --all needs npm. No root: packages are unpacked, not installed.
"""

import argparse
import contextlib
import ctypes
import fcntl
import hashlib
import html
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

ROOT = Path(__file__).resolve().parent.parent / ".cache" / "demo"
LAYOUT = 1  # another number makes everything anew from the packages
ADDRESS = ("127.0.0.1", 8741)  # fixed: URLs are part of every pair's uid
IMAGES = 800
JUNK = 80  # of these with a title that says nothing of the picture, for the rules to reject
NPM = {"emoji-datasource-google": "16.0.0", "emoji-datasource-twitter": "16.0.0", "emojibase-data": "17.0.0"}

INDEX = """<!DOCTYPE html>
<html lang="en">
<head><meta charset="utf-8"><title>Manuals</title></head>
<body>
<h1>Manuals</h1>
<ul>
<li><a href="gimp-help-en/index.html" hreflang="en">GIMP user manual</a></li>
<li><a href="gimp-help-de/index.html" hreflang="de">GIMP-Benutzerhandbuch</a></li>
</ul>
</body>
</html>
"""
# One folder of images, whose pairs are then found but not downloaded, and a few pages, which are never read.
ROBOTS = """User-agent: *
Disallow: /gimp-help-de/images/using/
Disallow: /gimp-help-de/gfdl
"""
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".txt": "text/plain; charset=utf-8",
    ".xml": "application/xml",
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".svg": "image/svg+xml",
    ".mng": "video/x-mng",
}


class Problem(Exception):
    """What went wrong and what to do, in one line."""


def fetch(root: Path, everything: bool = False) -> list[str]:
    """Make what is missing under `root`; returns the names of what was made. Safe to interrupt and to repeat."""
    pieces: dict[str, Callable[[Path, Path], None]] = {
        "site/gimp-help-en": partial(_manual, "en"),
        "site/gimp-help-de": partial(_manual, "de"),
        "openclipart": partial(_clipart, IMAGES),
    }
    if everything:
        pieces |= {
            "openclipart-all": partial(_clipart, None),
            "mate-backgrounds": _backgrounds,
            "emoji/google": partial(_emoji, "google"),
            "emoji/twitter": partial(_emoji, "twitter"),
        }
    stamp = root / f"layout-{LAYOUT}"
    if stamp.exists() and all((root / piece).is_dir() for piece in pieces) and (root / "site/robots.txt").exists():
        return []
    root.mkdir(parents=True, exist_ok=True)
    with open(root / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # a second fetch waits for the first and then finds everything
        return _make(root, pieces, stamp)


def _make(root: Path, pieces: dict[str, Callable[[Path, Path], None]], stamp: Path) -> list[str]:
    if not stamp.exists():
        for old in root.iterdir():
            if old.name not in ("lock", "packages"):
                shutil.rmtree(old) if old.is_dir() else old.unlink()
    aside = root / "aside"
    made = []
    for piece, make in pieces.items():
        if not (root / piece).is_dir():
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir()
            print(f"fetching {piece} …", file=sys.stderr, flush=True)
            make(root / "packages", aside)
            (root / piece).parent.mkdir(exist_ok=True)
            aside.rename(root / piece)
            made.append(piece)
    for name, text in (("index.html", INDEX), ("robots.txt", ROBOTS)):
        _replace(root / "site" / name, text.encode())
    _replace(stamp, b"")
    return made


def _replace(path: Path, data: bytes) -> None:
    aside = path.with_name(path.name + ".aside")
    aside.write_bytes(data)
    aside.rename(path)


def _manual(language: str, packages: Path, out: Path) -> None:
    wanted = re.compile(rf"usr/share/gimp/[^/]+/help/{language}/(.+)")
    for name, read in _members(debian(f"gimp-help-{language}", packages)):
        if match := wanted.fullmatch(name):
            _write(out, match[1], read())
    if not (out / "index.html").exists():
        raise Problem(f"gimp-help-{language} does not hold the manual where it is expected")


def _clipart(count: int | None, packages: Path, out: Path) -> None:
    """Images with a JSON file each: title, description, keywords, license from the drawings' RDF metadata."""
    drawings = re.compile(r"usr/share/openclipart/svg/(.+)\.svg")
    images = re.compile(r"usr/share/openclipart/png/(.+\.png)")
    about = {}
    for name, read in _members(debian("openclipart-svg", packages)):
        if match := drawings.fullmatch(name):
            about[f"{match[1]}.png"] = rdf_metadata(read())
    pictures = debian("openclipart-png", packages)
    names = [match[1] for name, _ in _members(pictures) if (match := images.fullmatch(name))]
    described = {name: about[name] for name in names if about.get(name, {}).get("title")}
    chosen = set(described if count is None else choose({n: a["title"] for n, a in described.items()}, count, JUNK))
    for name, read in _members(pictures):
        if (match := images.fullmatch(name)) and match[1] in chosen:
            _write(out, match[1], read())
            _write_json(out, match[1], described[match[1]])
    if not chosen:
        raise Problem("openclipart does not hold its images where they are expected")


def rdf_metadata(svg: bytes) -> dict[str, Any]:
    """title, description, keywords and license of a drawing's first RDF work; {} where there is none to read.

    Left out of them: e-mail addresses, and what a broken script of the collection wrote (`HASH(0x8677e2c)`).
    """
    found: dict[str, Any] = {}
    try:
        for _, work in ET.iterparse(io.BytesIO(svg)):  # noqa: S314 - expat stops entity bombs
            if not work.tag.endswith("}Work"):
                continue
            for entry in work:
                kind = entry.tag.rpartition("}")[2]
                if kind in ("title", "description") and _text(entry.text):
                    found[kind] = _text(entry.text)
                elif kind == "subject":
                    words = [_text(word.text) for word in entry.iter() if word.tag.endswith("}li")]
                    found["keywords"] = sorted(
                        {w.replace("_", " ") for w in words if w and w not in ("hash", "unsorted")}
                    )
                elif kind == "license":
                    found["license"] = next((value for value in entry.attrib.values() if value), "")
            break
    except ET.ParseError:
        return {}
    return {key: value for key, value in found.items() if value}


def _text(text: str | None) -> str:
    text = " ".join(html.unescape(text or "").replace("\0", "").split())
    return "" if "@" in text or re.search(r"\b0x[0-9a-f]{6}", text, re.IGNORECASE) else text


def choose(titles: dict[str, str], count: int, junk: int) -> list[str]:
    """`count` of the names, `junk` of them with a title of one word or one that more than 8 share.

    The folders take turns.
    The order within a folder is a hash's, so the choice is the same everywhere and spread over each folder.
    """
    often = Counter(titles.values())
    telling = {name for name, title in titles.items() if often[title] <= 8 and len(title.split()) > 1}

    def take(names: list[str], wanted: int) -> list[str]:
        folders: dict[str, list[str]] = {}
        for name in sorted(names, key=lambda name: hashlib.blake2b(f"demo {name}".encode()).digest()):
            folders.setdefault(name.partition("/")[0], []).append(name)
        turns = [(place, folder) for folder, members in folders.items() for place in range(len(members))]
        return [folders[folder][place] for place, folder in sorted(turns)[:wanted]]

    bad = take([name for name in titles if name not in telling], junk)
    return sorted(take(list(telling), count - len(bad)) + bad)


def _backgrounds(packages: Path, out: Path) -> None:
    """Wallpapers with their English names, from the desktop's own lists."""
    names: dict[str, str] = {}
    files: dict[str, bytes] = {}
    for name, read in _members(debian("mate-backgrounds", packages)):
        if name.startswith("usr/share/mate-background-properties/") and name.endswith(".xml"):
            for wallpaper in ET.fromstring(read()).iter("wallpaper"):  # noqa: S314
                titles = [entry.text for entry in wallpaper.iter("name") if not entry.attrib]
                for file in wallpaper.iter("filename"):
                    names[(file.text or "").strip().lstrip("/")] = _text(titles[0] if titles else "")
        elif name.startswith("usr/share/backgrounds/mate/") and name.endswith((".jpg", ".png")):
            files[name] = read()
    for name, data in files.items():
        short = name.removeprefix("usr/share/backgrounds/mate/")
        _write(out, short, data)
        _write_json(out, short, {"title": names.get(name) or re.sub(r"[-_]", " ", Path(name).stem)})


def _emoji(vendor: str, packages: Path, out: Path) -> None:
    """64-pixel emoji with their English labels as titles and their tags as keywords."""

    def key(code: str) -> str:  # the two packages write the variation selector in different places
        return "-".join(point for point in code.upper().split("-") if point != "FE0F")

    labels: dict[str, dict[str, Any]] = {}
    with tarfile.open(npm("emojibase-data", packages)) as archive:
        data = archive.extractfile("package/en/data.json")
        assert data is not None
        for emoji in json.load(data):
            for entry in [emoji, *emoji.get("skins", [])]:
                labels[key(entry["hexcode"])] = {"title": entry["label"], "keywords": emoji.get("tags", [])}
    with tarfile.open(npm(f"emoji-datasource-{vendor}", packages)) as archive:
        for member in archive:
            match = re.fullmatch(rf"package/img/{vendor}/64/([0-9a-f-]+)\.png", member.name)
            data = archive.extractfile(member) if match and member.isfile() else None
            if match and data is not None and key(match[1]) in labels:
                _write(out, f"{match[1]}.png", data.read())
                _write_json(out, f"{match[1]}.png", labels[key(match[1])])


def _write(out: Path, name: str, data: bytes) -> None:
    path = out / name
    if not path.resolve().is_relative_to(out.resolve()):
        raise Problem(f"a package holds a path that leads out of it: {name!r}")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def _write_json(out: Path, image: str, about: dict[str, Any]) -> None:
    text = json.dumps(about, ensure_ascii=False, indent=1, sort_keys=True) + "\n"
    _write(out, str(Path(image).with_suffix(".json")), text.encode())


def _members(package: Path) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """(path, function that reads it) of a Debian package's regular files, links and all else left out, in order.

    The files pass through a pipe: a member must be read before the next one is asked for.
    """
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(package)], stdout=subprocess.PIPE) as unpack:
        assert unpack.stdout is not None
        try:
            with tarfile.open(fileobj=unpack.stdout, mode="r|") as archive:
                for member in archive:
                    if member.isfile():
                        yield member.name.removeprefix("./"), partial(_content, archive, member)
            shutil.copyfileobj(unpack.stdout, io.BytesIO())  # the padding; else dpkg-deb complains of a broken pipe
        except tarfile.TarError as error:
            raise Problem(f"{package}: cannot be unpacked ({error}); delete it and call again") from error
    if unpack.returncode:
        raise Problem(f"{package}: dpkg-deb cannot unpack it; delete it and call again")


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(member)
    assert file is not None
    return file.read()


def debian(name: str, packages: Path) -> Path:
    """The package's file, downloaded by apt-get where it is not in `packages` yet. Raises Problem."""
    held = sorted(packages.glob(f"{name}_*.deb"))
    if held:
        return held[-1]
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        raise Problem("the demo's data comes from Debian's packages: apt-get and dpkg-deb are needed")
    is_root = os.geteuid() == 0
    # Root's apt would download as the user _apt, which may not be let into this folder.
    command = ["apt-get", "-qq", *(["-o", "APT::Sandbox::User=root"] if is_root else []), "download", name]

    def download(folder: str) -> Path:
        result = _run(command, folder)
        if result.returncode and is_root:  # no lists, or old ones
            _run(["apt-get", "-qq", "update"], folder)
            result = _run(command, folder)
        elif result.returncode:
            raise Problem(f"apt-get cannot download {name} ({_last_line(result)}); try: sudo apt-get update")
        if result.returncode:
            raise Problem(f"apt-get cannot download {name}: {_last_line(result)}")
        return next(Path(folder).glob("*.deb"))

    return _download(packages, download)


def npm(name: str, packages: Path) -> Path:
    """The package's file, downloaded by npm where it is not in `packages` yet. Raises Problem."""
    held = packages / f"{name}-{NPM[name]}.tgz"
    if held.exists():
        return held
    if not shutil.which("npm"):
        raise Problem("the emoji come from npm's packages: npm is needed")

    def download(folder: str) -> Path:
        result = _run(["npm", "pack", "--silent", f"{name}@{NPM[name]}"], folder)
        if result.returncode:
            raise Problem(f"npm cannot download {name}: {_last_line(result)}")
        return Path(folder) / held.name

    return _download(packages, download)


def _download(packages: Path, download: Callable[[str], Path]) -> Path:
    packages.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=packages, prefix="aside-") as folder:
        file = download(folder)
        return file.rename(packages / file.name)


def _run(command: list[str], folder: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(command, cwd=folder, env=os.environ | {"LC_ALL": "C"}, capture_output=True, text=True)


def _last_line(result: "subprocess.CompletedProcess[str]") -> str:
    lines = (result.stderr or result.stdout).strip().splitlines()
    return lines[-1] if lines else f"exit code {result.returncode}"


class Site(BaseHTTPRequestHandler):
    """Serves the regular files below `server.root`; a folder's address shows its index.html, and nothing is listed."""

    protocol_version = "HTTP/1.1"
    server_version, sys_version = "demo", ""
    disable_nagle_algorithm = True
    wbufsize = -1  # head and body leave together
    timeout = 30

    def do_GET(self) -> None:
        root: str = self.server.root  # type: ignore[attr-defined]
        path = unquote(urlsplit(self.path).path)
        file = os.path.realpath(root + path) if path.startswith("/") and "\0" not in path else ""
        if not file.startswith(root + os.sep) and file != root:  # a link may lead out, too
            return self._answer(HTTPStatus.NOT_FOUND, b"not found\n")
        if os.path.isdir(file):
            if not path.endswith("/"):
                return self._answer(HTTPStatus.MOVED_PERMANENTLY, b"", Location=quote(path) + "/")
            file = os.path.join(file, "index.html")
        elif path.endswith("/"):
            return self._answer(HTTPStatus.NOT_FOUND, b"not found\n")
        try:
            with open(file, "rb") as opened:
                body = opened.read()
        except OSError:
            return self._answer(HTTPStatus.NOT_FOUND, b"not found\n")
        kind = TYPES.get(os.path.splitext(file)[1].lower(), "application/octet-stream")
        self._answer(HTTPStatus.OK, body, **{"Content-Type": kind})

    do_HEAD = do_GET

    def _answer(self, status: HTTPStatus, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": TYPES[".txt"], **headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


class Server(ThreadingHTTPServer):
    """A server of `root` whose connections end with it."""

    request_queue_size = 128

    def __init__(self, root: Path, address: tuple[str, int]) -> None:
        self.root = str(root.resolve())
        super().__init__(address, Site)

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], OSError):  # a client that went away is no error
            super().handle_error(request, client_address)


def serve(root: Path, command: list[str], address: tuple[str, int] = ADDRESS) -> int:
    """Run `command` while the site is served; returns its exit code (128 + n where signal n ended it)."""
    if not (root / "index.html").exists():
        raise Problem(f"{root} is not there: python {sys.argv[0]} fetch")
    try:
        server = Server(root, address)
    except OSError as error:
        raise Problem(
            f"{address[0]}:{address[1]} cannot be served on ({error.strerror}); is another demo running?"
        ) from error
    with server:
        environment = dict(os.environ)
        for name in ("no_proxy", "NO_PROXY"):  # a proxy cannot reach this machine's loopback
            environment[name] = ",".join(filter(None, [environment.get(name), address[0]]))
        libc = ctypes.CDLL(None)
        try:
            # Connections wait in the queue until the thread below runs. Where this process is killed, the command
            # must not go on without the site and note every image as unreachable.
            child = subprocess.Popen(command, env=environment, preexec_fn=lambda: libc.prctl(1, signal.SIGKILL))
        except OSError as error:
            raise Problem(f"{command[0]}: cannot be run: {error.strerror}") from error
        signal.signal(signal.SIGINT, lambda *_: None)  # Ctrl-C reaches the command too: it decides
        signal.signal(signal.SIGTERM, lambda *_: child.terminate())
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            code = child.wait()
        finally:
            server.shutdown()
    return code if code >= 0 else 128 - code


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    fetching = commands.add_parser("fetch", help="fetch and lay out the data; does nothing where it is there")
    fetching.add_argument("--all", action="store_true", help="also all of openclipart, wallpapers and emoji")
    serving = commands.add_parser("serve", help="serve the site on loopback while COMMAND runs")
    serving.add_argument("run", nargs=argparse.REMAINDER, metavar="-- COMMAND …")
    options = parser.parse_args(arguments)
    try:
        if options.command == "fetch":
            fetch(ROOT, options.all)
            return 0
        command = options.run[1:] if options.run[:1] == ["--"] else options.run
        if not command:
            parser.error("serve needs a command: serve -- COMMAND …")
        return serve(ROOT / "site", command)
    except Problem as problem:
        print(f"demo_data: {problem}", file=sys.stderr)
        return 4
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        sys.exit(main())
