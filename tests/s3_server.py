"""An S3 server on loopback, in front of which a test can refuse requests as a throttled one does: moto's, or the MinIO
program that the variable MINIO names."""

import os
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import boto3
import fsspec
import pytest
import urllib3
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from moto.s3.models import s3_backends
from werkzeug.serving import WSGIRequestHandler, make_server

MINIO = os.environ.get("MINIO")
USER, PASSWORD = "test", "password-of-a-test"
_HOP = ("HTTP_EXPECT", "HTTP_CONNECTION", "HTTP_TRANSFER_ENCODING")  # what is between two machines alone
_BODY = {"Content-Type": "CONTENT_TYPE", "Content-Length": "CONTENT_LENGTH"}
SLOW_DOWN = ("503 Slow Down", "SlowDown", "Please reduce your request rate.")
FAILED = ("400 Bad Request", "InvalidRequest", "The part could not be taken.")


@dataclass
class Request:
    """What a client asks for: `parts` are the query's values."""

    method: str
    path: str
    parts: dict[str, list[str]]


@dataclass
class Store:
    """The server. `refuse` gives the answer to a request that is not let through: status, code, message."""

    refuse: Callable[[Request], tuple[str, str, str] | None] = lambda request: None
    seen: list[Request] = field(default_factory=list)
    refused: int = 0
    client: Any = None

    def __call__(self, environ: Any, start: Any) -> Any:
        request = Request(environ["REQUEST_METHOD"], environ["PATH_INFO"], parse_qs(environ["QUERY_STRING"], True))
        self.seen.append(request)
        refusal = self.refuse(request)  # under no lock, since it may ask the server something
        self.refused += refusal is not None
        if refusal is None:
            return self._server(environ, start)
        environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        status, code, message = refusal
        body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()
        start(status, [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))])
        return [b"" if request.method == "HEAD" else body]

    def open(self) -> None:
        """Let everything through again, and forget what came."""
        self.refuse, self.refused, self.seen = lambda request: None, 0, []

    def __post_init__(self) -> None:
        self._server = _Minio(MINIO) if MINIO else DomainDispatcherApplication(create_backend_app)

    def end(self) -> None:
        """End the server, with all that it stores."""
        if isinstance(self._server, _Minio):
            self._server.end()
        else:
            s3_backends.reset()  # which all of moto's servers in a process share


class _Minio:
    """MinIO in a process of its own. Requests are sent on as they came: their signatures are of the host that the
    client asked."""

    def __init__(self, program: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self.folder = tempfile.TemporaryDirectory(prefix="vlmdata-minio-")
        environment = {**os.environ, "MINIO_ROOT_USER": USER, "MINIO_ROOT_PASSWORD": PASSWORD, "MINIO_BROWSER": "off"}
        self.process = subprocess.Popen(
            [program, "server", self.folder.name, "--address", f"127.0.0.1:{self.port}", "--quiet"],
            env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        self.pool = urllib3.HTTPConnectionPool("127.0.0.1", self.port, maxsize=32, timeout=60)
        for _ in range(300):
            assert self.process.poll() is None, f"{program} ended with {self.process.returncode}"
            try:
                if self.pool.request("GET", "/minio/health/ready", retries=False).status == 200:
                    return
            except urllib3.exceptions.HTTPError:
                pass  # it is not up yet
            time.sleep(0.1)
        self.end()
        raise AssertionError("MinIO does not answer")

    def __call__(self, environ: Any, start: Any) -> Any:
        headers = {
            name[5:].replace("_", "-"): value
            for name, value in environ.items()
            if name.startswith("HTTP_") and name not in _HOP
        }
        headers |= {name: environ[key] for name, key in _BODY.items() if environ.get(key)}
        answer = self.pool.urlopen(
            environ["REQUEST_METHOD"], environ["RAW_URI"],
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0)), headers,
            retries=False, redirect=False, decode_content=False,
        )  # fmt: skip
        start(f"{answer.status} {answer.reason}", [each for each in answer.headers.items() if each[0] != "Connection"])
        return [answer.data]

    def end(self) -> None:
        self.process.terminate()
        self.process.wait(30)
        self.folder.cleanup()


class _Quiet(WSGIRequestHandler):
    protocol_version = "HTTP/1.1"

    def log(self, *_: Any) -> None:
        """Requests are in `Store.seen`."""


@contextmanager
def serve_s3(bucket: str) -> Iterator[Store]:
    """A server with one bucket; fsspec's `s3://` means it in the block, with few and short retries."""
    store = Store()
    server = make_server("127.0.0.1", 0, store, threaded=True, request_handler=_Quiet)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}",
            "AWS_ACCESS_KEY_ID": USER,
            "AWS_SECRET_ACCESS_KEY": PASSWORD,
            "AWS_DEFAULT_REGION": "us-east-1",
        }.items():
            patch.setenv(name, value)
        _forget_servers()
        try:
            store.client = boto3.client("s3")
            store.client.create_bucket(Bucket=bucket)
            yield store
        finally:
            server.shutdown()
            server.server_close()
            store.end()
            _forget_servers()


@contextmanager
def quick_s3(bucket: str, cache: Path) -> Iterator[Store]:
    """`serve_s3` with the user's cache in a folder of the test's, and locks that do not wait for a later writer."""
    from vlmdata import lock

    with pytest.MonkeyPatch.context() as patch, serve_s3(bucket) as store:
        patch.setenv("XDG_CACHE_HOME", str(cache))
        patch.setattr(lock, "_SETTLED_SECONDS", 0.0)  # conditions alone decide
        yield store


def _forget_servers() -> None:
    """fsspec keeps a filesystem, and with it the server that it once asked."""
    from vlmdata.train import data

    fsspec.get_filesystem_class("s3").clear_instance_cache()
    data._filesystem.cache_clear()
