"""A dataset on disk or on any fsspec URL: paths, parts, manifests, snapshots, commits.

A part is written aside and committed in one step: a rename on a local disk, one PUT on an object store. Readers list
parts from manifests, never by listing a folder.
"""

import hashlib
import io
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from vlmdata.errors import DataError, InputError, MachineError
from vlmdata.parts import (
    FOOTER,
    File,
    Part,
    Table,
    footer,
    noted,
    snapshot_folder,
    table_folder,
    table_from,
    write_parquet,
)
from vlmdata.storage import places, reaching, upload

FORMAT_VERSION = 1
_CHUNK = 1 << 20


def unguarded() -> None:
    """Nobody else's lock is in the way."""


class Dataset:
    """The files below one folder or URL. All paths are relative to it, with `/`.

    guard: raises RefusedError when the run's lock has been lost; `lock` sets it, and it can be pickled. Nothing is
    recorded as done, published or removed before it is asked.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.guard: Callable[[], None] = unguarded
        self._checked: set[tuple[str, str]] = set()  # read once by this object, and found as they should be
        try:
            self.fs, self.root = fsspec.core.url_to_fs(url)
        except (ValueError, ImportError) as error:
            raise InputError(f"dataset {url!r}: {error}") from error
        self.local = getattr(self.fs, "protocol", "") in ("file", ("file", "local"))

    @property
    def absolute(self) -> str:
        """What opens the same dataset in a process with another working folder."""
        return self.root if self.local else self.url

    def path(self, relative: str) -> str:
        return f"{self.root.rstrip('/')}/{relative}" if relative else self.root

    def address(self, relative: str) -> str:
        """What fsspec opens a file by, and what a user is told: a path, or of a remote dataset a URL."""
        return self.path(relative) if self.local else self.fs.unstrip_protocol(self.path(relative))

    def reaching(self, relative: str) -> AbstractContextManager[None]:
        """Around what asks a remote store for a file: see `storage.reaching`."""
        return nullcontext() if self.local else reaching(self.address(relative))

    def exists(self, relative: str) -> bool:
        with self.reaching(relative):
            return any(self.fs.exists(place) for place in places(self.fs, self.path(relative)))

    def read_bytes(self, relative: str) -> bytes:
        with self.reaching(relative):
            *before, last = places(self.fs, self.path(relative))
            for place in before:
                with suppress(FileNotFoundError):
                    return self.fs.cat_file(place)
            return self.fs.cat_file(last)

    def open(self, relative: str) -> Any:
        """A binary file to read from."""
        with self.reaching(relative):
            return self.fs.open(self.path(relative), "rb")

    def write_bytes(self, relative: str, content: bytes) -> File:
        """Commit a small file in one step."""
        with self.spool() as folder:
            aside = folder / "file"
            aside.write_bytes(content)
            return self.commit(aside, relative)

    def write_json(self, relative: str, content: object) -> File:
        return self.write_bytes(relative, _json_bytes(content))

    def write_sealed(self, relative: str, content: dict[str, Any]) -> File:
        """`write_json` with the SHA-256 of all the rest as `checksum`, `created` apart: no time is in it."""
        return self.write_json(relative, sealed(content))

    def is_sealed(self, relative: str) -> bool:
        """Whether a file is byte for byte as `write_sealed` has written it, but for the digits of `created`."""
        content = self.read_json(relative)
        unsealed = {name: value for name, value in content.items() if name != "checksum"}
        if self.read_bytes(relative) != _json_bytes(content):
            return False
        if "checksum" not in content:  # written before there were any; under another name it would be damaged
            return not any(isinstance(value, str) and len(value) > 40 for value in content.values())
        return content == sealed(unsealed)

    def read_json(self, relative: str) -> Any:
        try:
            return json.loads(self.read_bytes(relative))
        except ValueError as error:
            raise DataError(
                f"{self.address(relative)}: not JSON ({error}); `vlmdata verify` lists what is damaged"
            ) from error

    @contextmanager
    def spool(self) -> Iterator[Path]:
        """A local folder to write aside in, which lies where `kept` has its own; gone afterwards."""
        parent = self.kept_folder(".spool")
        try:
            os.makedirs(parent, exist_ok=True)
        except OSError as error:
            whose = f"{self.root}: the dataset's folder" if self.local else f"{parent}: where uploads are made"
            raise MachineError(f"{whose} cannot be written: {error.strerror}") from error
        folder = Path(tempfile.mkdtemp(prefix=f"{os.getpid()}-", dir=parent))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    @contextmanager
    def kept(self, name: str) -> Iterator[Path]:
        """A local folder that outlives a kill and an error and is gone once the block has ended well.

        It lies in the dataset where that is local, else in the user's cache (`$XDG_CACHE_HOME/vlmdata`, `~/.cache`).
        """
        folder = self.kept_folder(name)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise MachineError(f"{folder}: cannot be made: {error.strerror}") from error
        yield folder
        shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):  # another reading lies beside it
            folder.parent.rmdir()

    def kept_folder(self, name: str) -> Path:
        """Where `kept` has its folder."""
        if self.local:
            return Path(self.path(name))
        cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        return Path(cache, "vlmdata", hashlib.sha256(self.url.encode()).hexdigest()[:16], name)

    def commit(self, aside: Path, relative: str) -> File:
        """Move a finished local file to its place in one step: nobody ever sees half of it."""
        digest, size = _sha256(aside.open("rb"))
        target = self.path(relative)
        if self.local:
            os.makedirs(os.path.dirname(target), exist_ok=True)
            with aside.open("rb") as handle:
                os.fsync(handle.fileno())
            os.replace(aside, target)
        else:
            with self.reaching(relative):
                upload(self.fs, str(aside), target)
        return File(relative, size, digest)

    def sha256(self, relative: str) -> tuple[str, int]:
        """A file's SHA-256 (hex) and its bytes."""
        with self.reaching(relative):
            return _sha256(self.open(relative))

    def remove(self, relative: str) -> None:
        self.guard()
        with self.reaching(relative):
            # What stands aside first, or a kill would bring it back.
            for place in reversed(places(self.fs, self.path(relative))[:2]):
                if self.fs.exists(place):
                    self.fs.rm(place, recursive=True)

    def move(self, source: str, target: str) -> None:
        """Put a file in the place of another. Nothing happens where it was moved already."""
        self.guard()
        if not self.exists(source):
            return
        if self.local:
            os.makedirs(os.path.dirname(self.path(target)), exist_ok=True)
            os.replace(self.path(source), self.path(target))
        else:  # what lies there is overwritten in one step; the source goes afterwards
            with self.reaching(target):
                self.fs.cp_file(self.path(source), self.path(target))
                self.fs.rm_file(self.path(source))

    def files(self, folder: str) -> list[str]:
        """Every file below a folder, whether a manifest names it or not, in order."""
        if not self.exists(folder):
            return []
        start = self.path(folder).rstrip("/") + "/"
        below = f"{folder}/" if folder else ""
        with self.reaching(folder):
            return sorted(below + path[len(start) :] for path in self.fs.find(start.rstrip("/")))

    def clean_spool(self) -> None:
        """Remove what killed runs left aside. Only the holder of the lock may call it."""
        shutil.rmtree(self.kept_folder(".spool"), ignore_errors=True)

    # Parts

    def write_part(
        self,
        table: str,
        key: str,
        name: str,
        rows: pa.Table,
        inputs: dict[str, str],
        also: tuple[File, ...] = (),
        devices: Iterable[str] = (),
    ) -> Part:
        """Commit one part. `inputs` (path -> sha256 of the parts it was made from) goes into its footer, and
        `devices`, where a model ran."""
        with self.spool() as folder:
            aside = folder / "part.parquet"
            write_parquet(rows, aside, footer(inputs, also, devices))
            return self.commit_part(aside, table, key, name, rows.num_rows, also)

    def commit_part(self, aside: Path, table: str, key: str, name: str, rows: int, also: tuple[File, ...] = ()) -> Part:
        """Commit a part that was written batch by batch, its `footer` included."""
        file = self.commit(aside, f"{table_folder(table, key)}/{name}.parquet")
        return Part(name, file.path, rows, file.bytes, file.sha256, also)

    def current_part(self, table: str, key: str, name: str, inputs: dict[str, str]) -> Part | None:
        """The part, when it is there and was made from just these inputs; otherwise None."""
        relative = f"{table_folder(table, key)}/{name}.parquet"
        if not self.exists(relative):
            return None
        try:
            with self.open(relative) as handle:
                metadata = pq.read_metadata(handle)
            note = json.loads((metadata.metadata or {})[FOOTER])
        except (pa.ArrowException, OSError, KeyError, ValueError):
            return None  # damaged: it is made again
        also = tuple(File(**file) for file in note["also"])
        if note["inputs"] != inputs or not all(self.exists(file.path) for file in also):
            return None
        digest, size = self.sha256(relative)
        return Part(name, relative, metadata.num_rows, size, digest, also)

    def devices(self, part: Part) -> list[str]:
        """Where the model ran that a part's values come from, if the part notes it."""
        return self._note(part).get("devices", [])

    def inputs(self, part: Part) -> dict[str, str]:
        """What a part was made from: path -> sha256."""
        return self._note(part)["inputs"]

    def _note(self, part: Part) -> dict[str, Any]:
        try:
            with self.open(part.path) as handle:
                metadata = pq.read_metadata(handle).metadata or {}
            return json.loads(metadata[FOOTER])
        except (pa.ArrowException, FileNotFoundError, KeyError) as error:
            raise DataError(f"{self.address(part.path)}: {error}; `vlmdata verify` lists what is damaged") from error

    def read_part(self, part: Part | str, columns: list[str] | None = None) -> pa.Table:
        """A part's rows; the columns in the order asked for, vectors as plain lists.

        Raises DataError for one that is gone, no Parquet, or, given as a Part, not the bytes that it was.
        """
        relative = part if isinstance(part, str) else part.path
        try:
            content = self.read_bytes(relative)
            if isinstance(part, Part) and hashlib.sha256(content).hexdigest() != part.sha256:
                raise self._changed(relative)
            rows = pq.read_table(
                io.BytesIO(content), columns=columns, use_threads=False, page_checksum_verification=True
            )
        except (pa.ArrowException, FileNotFoundError) as error:
            raise DataError(f"{self.address(relative)}: {error}; `vlmdata verify` lists what is damaged") from error
        rows = rows.replace_schema_metadata(None)
        return rows.select(columns) if columns is not None else rows

    def checked(self, file: Part | File) -> Part | File:
        """The file, when its bytes on a local disk are what they were; object stores check their own.

        Raises DataError for one that has changed or is gone: a flipped bit must never become somebody's value.
        """
        if self.local and (file.path, file.sha256) not in self._checked:
            try:
                found = self.sha256(file.path)[0]
            except FileNotFoundError as error:
                raise DataError(f"{self.address(file.path)}: gone; `vlmdata verify` lists what is damaged") from error
            if found != file.sha256:
                raise self._changed(file.path)
            self._checked.add((file.path, file.sha256))
        return file

    def opened(self, file: File) -> Any:
        """The file for reading, from its beginning. Raises DataError as `checked` does."""
        return self.open(self.checked(file).path)

    def _changed(self, relative: str) -> DataError:
        return DataError(
            f"{self.address(relative)}: not the bytes that were written; `vlmdata verify` lists what is damaged, "
            "docs/faults.md says how it is made again"
        )

    # Manifests

    def write_table(self, table: Table) -> None:
        """Write a table's manifest: the stage is done. Only the driver does it."""
        self.guard()
        self.write_sealed(
            f"{table_folder(table.table, table.key)}/manifest.json",
            {"format_version": FORMAT_VERSION, **asdict(table)},
        )

    def read_table(self, table: str, key: str) -> Table | None:
        """A table as its manifest lists it, or None when the stage never ended. Raises DataError for a damaged one."""
        relative = f"{table_folder(table, key)}/manifest.json"
        if not self.exists(relative):
            return None
        try:
            return table_from(self.read_json(relative))
        except (KeyError, TypeError) as error:
            raise DataError(
                f"{self.address(relative)}: not a table's manifest; `vlmdata verify` lists what is damaged"
            ) from error

    def current_table(self, table: str, key: str, inputs: Iterable[Table]) -> Table | None:
        """A table whose stage ended, unless one of the tables that it notes as made from is among `inputs` and has
        changed since: then the stage goes on, with the parts that are there."""
        there = self.read_table(table, key)
        now = noted(inputs)
        return (
            there if there and all(now.get(name, sha256) == sha256 for name, sha256 in there.inputs.items()) else None
        )

    def tables_named(self, table: str) -> list[Table]:
        """The table under every key whose stage ended, in the order of the keys."""
        return [found for key in self.keys_of(table) if (found := self.read_table(table, key))]

    def keys_of(self, table: str) -> list[str]:
        """The keys under which a table has been begun, in order."""
        folder = f"tables/{table}"
        if not self.exists(folder):
            return []
        with self.reaching(folder):
            paths = self.fs.ls(self.path(folder), detail=False)
        return sorted(path.rstrip("/").rsplit("/", 1)[1] for path in paths)

    # Snapshots

    def latest(self) -> dict[str, Any] | None:
        """The manifest of the snapshot in force, or None."""
        if not self.exists("latest.json"):
            return None
        return self.snapshot(self.read_json("latest.json")["snapshot"])

    def snapshot(self, number: int) -> dict[str, Any]:
        manifest = self.read_json(f"{snapshot_folder(number)}/manifest.json")
        return {name: value for name, value in manifest.items() if name != "checksum"}

    def removed(self) -> list[int]:
        """The numbers of snapshots that `vlmdata gc` has removed. Raises DataError for a damaged file."""
        if not self.exists("removed.json"):
            return []
        content = self.read_json("removed.json")
        gone = content.get("snapshots") if isinstance(content, dict) else None
        if not isinstance(gone, list) or not all(type(number) is int for number in gone):
            where = self.address("removed.json")
            raise DataError(f"{where}: not numbers of snapshots; `vlmdata verify` lists what is damaged")
        return gone

    def numbers(self) -> list[int]:
        """The numbers of the snapshots that there are, the newest last."""
        newest = self.read_json("latest.json")["snapshot"] if self.exists("latest.json") else 0
        gone = set(self.removed())
        return [number for number in range(1, newest + 1) if number not in gone]

    def publish(self, manifest: dict[str, Any]) -> None:
        """Write a snapshot's manifest, then switch `latest.json` to it."""
        self.guard()
        self.write_sealed(f"{snapshot_folder(manifest['number'])}/manifest.json", manifest)
        self.write_sealed("latest.json", {"snapshot": manifest["number"]})


def sealed(content: dict[str, Any]) -> dict[str, Any]:
    """What `Dataset.write_sealed` writes."""
    rest = {name: value for name, value in content.items() if name not in ("checksum", "created")}
    return {**content, "checksum": hashlib.sha256(_json_bytes(rest)).hexdigest()}


def _json_bytes(content: object) -> bytes:
    return (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode()  # unsorted: the order of rules counts


def _sha256(handle: Any) -> tuple[str, int]:
    digest, size = hashlib.sha256(), 0
    with handle:
        while chunk := handle.read(_CHUNK):
            digest.update(chunk)
            size += len(chunk)
    return digest.hexdigest(), size
