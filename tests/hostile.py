"""A web server on loopback that does what a test tells it to, down to the bytes on the wire."""

import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

Route = Callable[["Wire"], None]


class Wire(socketserver.StreamRequestHandler):
    """One connection: reads a request, lets the route write whatever it likes, closes."""

    timeout = 5

    def handle(self) -> None:
        self.server: Server
        line = self.rfile.readline(65_536).decode("latin-1").split()
        if len(line) < 2:
            return
        self.path, self.headers = line[1], {}
        while (header := self.rfile.readline(65_536).strip()) != b"":
            name, _, value = header.decode("latin-1").partition(":")
            self.headers[name.lower()] = value.strip()
        self.server.site.seen.append((self.path, self.headers))
        route = self.server.site.routes.get(self.path) or self.server.site.routes.get("*")
        try:
            if route is None:
                self.answer(b"", "404 Not Found")
            else:
                route(self)
        except OSError:
            pass  # the client has hung up, as it should

    def answer(self, body: bytes, status: str = "200 OK", length: int | None = None, **headers: str) -> None:
        fields = {"Content-Length": str(len(body) if length is None else length), "Connection": "close"}
        fields |= {name.replace("_", "-"): value for name, value in headers.items()}
        head = f"HTTP/1.1 {status}\r\n" + "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        self.wfile.write(head.encode() + b"\r\n" + body)
        self.wfile.flush()

    def sleep(self, seconds: float) -> bool:
        """False when the test is over."""
        return not self.server.site.over.wait(seconds)


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 128
    site: "Site"

    def handle_error(self, request: object, client_address: object) -> None:
        """Connections that a client cut are what these tests are about."""


@dataclass
class Site:
    """Routes by path (`*` for all others) and the requests that came: (path, headers)."""

    routes: dict[str, Route]
    port: int = 0
    seen: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    def url(self, path: str) -> str:
        return f"http://{self.host}{path}"

    def paths(self) -> list[str]:
        return [path for path, _ in self.seen]


@contextmanager
def serve(routes: dict[str, Route], context: object = None) -> Iterator[Site]:
    """A site on a free port of 127.0.0.1; with TLS where an SSLContext is given."""
    site = Site(routes)
    with Server(("127.0.0.1", 0), Wire) as server:
        if context is not None:
            server.socket = context.wrap_socket(server.socket, server_side=True)  # type: ignore[attr-defined]
        server.site, site.port = site, server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield site
        finally:
            site.over.set()
            server.shutdown()
            thread.join()


def send(body: bytes, status: str = "200 OK", length: int | None = None, **headers: str) -> Route:
    """A route that answers in the ordinary way. Underscores in names of headers stand for hyphens."""
    return lambda wire: wire.answer(body, status, length, **headers)


def redirect(target: str, status: str = "302 Found") -> Route:
    return send(b"", status, Location=target)


def drip(wire: Wire) -> None:
    """A byte now and then, always before a read would time out."""
    wire.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
    while wire.sleep(0.05):
        wire.wfile.write(b"x")
        wire.wfile.flush()


def endless(wire: Wire) -> None:
    """A body without a length and without an end."""
    wire.wfile.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
    for _ in range(10_000):
        wire.wfile.write(b"\xff\xd8\xff" + b"x" * 65_536)


def silent(wire: Wire) -> None:
    """Nothing at all."""
    while wire.sleep(0.05):
        time.sleep(0)


@dataclass
class Counting:
    """A route that takes its time, counts how many requests it deals with at once, and notes when they came."""

    answer: Route
    seconds: float = 0.0
    now: int = 0
    most: int = 0
    times: list[float] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self, wire: Wire) -> None:
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)
            self.times.append(time.monotonic())
        wire.sleep(self.seconds)
        with self.lock:
            self.now -= 1
        self.answer(wire)
