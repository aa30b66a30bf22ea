"""Which addresses a request may go to: none but public ones, unless the recipe names the host.

An address is checked where it is about to be connected to, so that neither a redirect nor a DNS answer that changes
between check and use leads into the machine's own network (server-side request forgery, DNS rebinding).
"""

import asyncio
import ipaddress
import socket
import time
from collections import OrderedDict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from aiohttp.abc import AbstractResolver, ResolveResult

# Public to Python 3.11, and yet inside: Azure's metadata, Oracle's in 192.0.0.0/24, NAT64 of a local network, and the
# site-local addresses of old.
_INSIDE = [ipaddress.ip_network(net) for net in ("168.63.129.16/32", "192.0.0.0/24", "64:ff9b:1::/48", "fec0::/10")]
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_LOOKUPS = 128  # DNS requests at once; those that get no answer hold up the others only beyond that
_FRESH, _AGAIN = 300.0, 30.0  # seconds that an answer counts; that of a server in trouble
_REMEMBERED = 50_000  # names


class Blocked(OSError):
    """An address that no request may go to."""


def is_public(address: str) -> bool:
    """Whether an IPv4 or IPv6 address is one of the public internet.

    False for private, loopback, link-local (cloud metadata among them), multicast, reserved and unspecified ones, for
    Teredo, and for other IPv6 forms that carry such an IPv4 address (mapped, 6to4, NAT64).
    Raises ValueError for what is no address.
    """
    ip = ipaddress.ip_address(address.partition("%")[0])
    if any(ip.version == net.version and ip in net for net in _INSIDE):
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour
        if ip in _NAT64:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
    return ip.is_global and not (ip.is_multicast or ip.is_reserved or ip.is_unspecified or ip.is_link_local)


class Gate:
    """Decides about hosts and addresses for one client.

    allow: `host`, `host:port` or `[v6]:port` that may be at a private address.
    """

    def __init__(self, allow: Iterable[str]) -> None:
        self._hosts = {_host_and_port(entry) for entry in allow}
        self._permitted: set[tuple[str, int]] = set()

    def names(self, host: str, port: int) -> bool:
        """Whether the recipe allows this host at a private address."""
        host = host.lower().rstrip(".")
        return (host, port) in self._hosts or (host, None) in self._hosts

    def check(self, host: str, port: int) -> None:
        """Raise Blocked when `host` is a literal address that is not public. Names are checked when they resolve."""
        try:
            public = is_public(host)
        except ValueError:
            return
        if self.names(host, port):
            self._permitted.add((host, port))
        elif not public:
            raise Blocked("the address is not a public one")

    def choose(self, host: str, port: int, addresses: list[str]) -> list[str]:
        """Those of a host's addresses that may be connected to. Raises Blocked when there is none."""
        if self.names(host, port):
            self._permitted.update((address, port) for address in addresses)
            return addresses
        public = [address for address in addresses if is_public(address)]
        if not public:
            raise Blocked("the host's name leads to an address that is not a public one")
        return public

    def socket(self, info: Any) -> socket.socket:
        """A socket for one of getaddrinfo's entries: the last place to look, whichever way the address came."""
        family, kind, protocol, _, address = info
        if not is_public(address[0]) and (address[0], address[1]) not in self._permitted:
            raise Blocked("the address is not a public one")
        return socket.socket(family, kind, protocol)


class Names:
    """Hosts' addresses, asked of the system once and remembered for a while: also that there are none.

    The system does not say how long an answer holds; 5 minutes are what most names are given at least. One for the
    process, used in one event loop at a time; `close` ends what waits in it.
    """

    def __init__(self) -> None:
        self._known: OrderedDict[str, tuple[float, list[Any] | OSError]] = OrderedDict()
        self._asked: dict[str, asyncio.Task[list[Any]]] = {}
        self._threads: ThreadPoolExecutor | None = None

    async def ask(self, host: str, seconds: float) -> list[Any]:
        """getaddrinfo's entries, of port 0. Raises OSError when there is none within `seconds`."""
        until, found = self._known.get(host, (0.0, []))
        if time.monotonic() >= until:
            if host not in self._asked:
                task = self._asked[host] = asyncio.create_task(self._ask_system(host))
                task.add_done_callback(lambda done: done.cancelled() or done.exception())  # if nobody waits any more
            try:
                async with asyncio.timeout(seconds):
                    # Shielded, since others wait for the same answer.
                    return await asyncio.shield(self._asked[host])
            except TimeoutError as error:
                raise socket.gaierror(socket.EAI_AGAIN, f"no answer within {seconds:g} s") from error
        if isinstance(found, OSError):
            raise type(found)(*found.args)
        return found

    async def _ask_system(self, host: str) -> list[Any]:
        # The system's call blocks, and cannot be ended.
        self._threads = self._threads or ThreadPoolExecutor(_LOOKUPS, "vlmdata-dns")
        try:
            found = await asyncio.get_running_loop().run_in_executor(
                self._threads,
                socket.getaddrinfo,
                host,
                0,
                socket.AF_UNSPEC,
                socket.SOCK_STREAM,
                0,
                socket.AI_ADDRCONFIG,
            )
            self._remember(host, _FRESH, found)
            return found
        except ValueError as error:  # a label too long, a NUL
            raise socket.gaierror(socket.EAI_NONAME, "not a host's name") from error
        except OSError as error:
            again = isinstance(error, socket.gaierror) and error.errno == socket.EAI_AGAIN
            self._remember(host, _AGAIN if again else _FRESH, error)
            raise
        finally:
            del self._asked[host]

    def _remember(self, host: str, seconds: float, answer: list[Any] | OSError) -> None:
        self._known[host] = time.monotonic() + seconds, answer
        self._known.move_to_end(host)
        if len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)

    def close(self) -> None:
        """Before the event loop ends."""
        for task in self._asked.values():
            task.cancel()
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)
            self._threads = None


class Resolver(AbstractResolver):
    """Gives out only those of a host's addresses that the gate lets through. seconds: how long an answer may take."""

    def __init__(self, gate: Gate, names: Names, seconds: float) -> None:
        self._gate, self._names, self._seconds = gate, names, seconds

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """The host's addresses. Raises OSError (Blocked, or socket.gaierror when there is none in time)."""
        found = await self._names.ask(host, self._seconds)
        by_address = {str(entry[4][0]): entry for entry in found if family in (socket.AF_UNSPEC, entry[0])}
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=by_address[address][0],
                proto=by_address[address][2],
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for address in self._gate.choose(host, port, list(by_address))
        ]

    async def close(self) -> None:
        """Nothing to release: the names belong to the process."""


def _host_and_port(entry: str) -> tuple[str, int | None]:
    try:
        return str(ipaddress.ip_address(entry)), None
    except ValueError:
        pass
    host, colon, port = entry.rpartition(":")
    if not colon or not port.isdigit():
        host, port = entry, ""
    return host.strip("[]").lower().rstrip("."), int(port) if port else None
