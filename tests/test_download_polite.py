"""What the download does to hosts and to itself: limits a host, pauses, rest, fairness, watchdog, bytes held."""

import asyncio
import itertools
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pytest
from hostile import Counting, Site, Wire, drip, send, serve, silent
from test_download import GOOD, fetch, statuses

from vlmdata.download import hosts, network
from vlmdata.download.address import Blocked, Gate, Names, is_public
from vlmdata.download.buckets import Bucket, buckets
from vlmdata.download.budget import Budget
from vlmdata.download.failure import FetchError, http_error
from vlmdata.download.hosts import Host
from vlmdata.download.watch import Watch
from vlmdata.pipelines.runner import processes
from vlmdata.recipe import Runner

# A host that says nothing about the use of what it has.
OPEN = {"/robots.txt": send(b""), "/.well-known/tdmrep.json": send(b"", "404 Not Found")}


@pytest.fixture(autouse=True)
def _new_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """What one test makes the process think of a port does not reach the next."""
    monkeypatch.setattr(network, "NETWORK", network.Network())


def gaps(route: Counting) -> list[float]:
    return [after - before for before, after in itertools.pairwise(sorted(route.times))]


def several(site: Site, count: int, name: str = "") -> list[str]:
    return [site.url(f"/{name}{number}.jpg") for number in range(count)]


def parts_at_once(tmp_path: Path, parts: list[list[str]], *sites: Site, **options: object) -> list[list[str]]:
    """The statuses of several parts that are downloaded side by side."""
    found: list[list[str]] = [[] for _ in parts]

    def work(number: int) -> None:
        folder = tmp_path / str(number)
        folder.mkdir()
        found[number] = statuses(fetch(folder, parts[number], *sites, **options)[0])

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(parts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def test_a_host_gets_no_more_requests_at_once_than_the_recipe_says_from_all_parts_together(tmp_path: Path) -> None:
    route = Counting(send(GOOD), 0.02)
    with serve({"*": route, **OPEN}) as site:
        parts = [several(site, 20, name) for name in "abc"]
        found = parts_at_once(tmp_path, parts, site, per_host=3)
        assert found == [["success"] * 20] * 3
        assert route.most == 3
        assert site.paths().count("/robots.txt") == 1  # for all parts


def test_requests_to_a_host_keep_their_distance_in_all_parts_together(tmp_path: Path) -> None:
    route = Counting(send(GOOD), 0)
    with serve({"*": route, **OPEN}) as site:
        found = parts_at_once(tmp_path, [several(site, 6, name) for name in "ab"], site, host_rate=20)
    assert found == [["success"] * 6] * 2
    # A gap can be shorter at the server than at the client, not 12 of them together.
    assert sum(gaps(route)) > 11 / 20 - 0.04


def test_robots_txt_may_ask_for_a_longer_distance_but_not_for_any(tmp_path: Path) -> None:
    route = Counting(send(GOOD), 0)
    with serve({"*": route, "/robots.txt": send(b"User-agent: *\nCrawl-delay: 0.1\n")}) as site:
        assert statuses(fetch(tmp_path, several(site, 5), site)[0]) == ["success"] * 5
    assert sum(gaps(route)) > 4 * 0.1 - 0.04
    with serve({"*": send(GOOD), "/robots.txt": send(b"User-agent: *\nCrawl-delay: 86400\n")}) as site:
        assert statuses(fetch(tmp_path, several(site, 2), site, deadline=0.3)[0]) == ["success"] * 2


def test_one_process_asks_a_host_and_all_share_one_that_redirects_lead_to() -> None:
    assert processes(Runner(kind="direct", workers=8)) == 1
    assert processes(Runner(kind="dask", workers=8)) == 8
    known = network.Network()
    from vlmdata.download.fetch import Client, parse_url
    from vlmdata.recipe import Consent, Download

    urls = ["https://example.org/a.jpg", "http://WWW.example.org:80/", "http://127.0.0.1/a", "web:/a", "web:/a#t=1"]
    own, same, *rest = buckets(pa.chunked_array([[*urls, "http://[", "http://elsewhere.example"]]), 1000).tolist()
    assert own == same
    assert rest[1] == rest[2]
    assert len({own, *rest}) == 5
    options = Download(allow_hosts=["127.0.0.1:80"], per_host=4)
    client = Client(options, Consent(), known.hosts, known.names, known.budget)
    client.buckets = (Bucket(own, 1000, 8), Bucket(rest[1], 1000, 8))
    host = client.host(parse_url("https://example.org/a.jpg"))
    host.know_robots(2)
    assert (host.limit, host.interval, host.share) == (4, 0.1, 1)
    assert client.host(parse_url("http://example.org/b.jpg")) is host
    host = client.host(parse_url("http://elsewhere.example/a.jpg"))
    host.know_robots(2)
    assert (host.limit, host.interval, host.share) == (1, 0.1, 8)
    began = time.monotonic() + 100
    for shared in (True, False):
        client.buckets = (Bucket(own if shared else rest[-1], 1000, 8),)
        assert client.host(parse_url("http://elsewhere.example/b.jpg")) is host
        host.enter(began)
        assert host.opens - began == (16 if shared else 18)  # robots.txt's delay is divided as the rate is
    assert client.host(parse_url("http://127.0.0.1/a.jpg")).interval == 0  # the user's own


def test_a_slow_host_holds_up_only_its_own_urls(tmp_path: Path) -> None:
    """With 4 places, and 30 URLs of a slow host in front."""
    order: list[str] = []

    def slow(wire: Wire) -> None:
        wire.sleep(0.05)
        order.append("slow")
        wire.answer(GOOD)

    def quick(wire: Wire) -> None:
        order.append("quick")
        wire.answer(GOOD)

    with serve({"*": slow, **OPEN}) as one, serve({"*": quick, **OPEN}) as other:
        urls = several(one, 30) + several(other, 30)
        found, _ = fetch(tmp_path, urls, one, other, concurrency=4, per_host=2)
    assert statuses(found) == ["success"] * 60
    assert order[:40].count("quick") == 30


def test_a_429_stops_all_requests_to_the_host_for_as_long_as_it_says(tmp_path: Path) -> None:
    times: list[float] = []

    def limited(wire: Wire) -> None:
        times.append(time.monotonic())
        if len(times) == 1:
            wire.answer(b"", "429 Too Many Requests", Retry_After="1")
        else:
            wire.answer(GOOD)

    with serve({"*": limited, **OPEN}) as site:
        found, _ = fetch(tmp_path, several(site, 6), site, retries=1, per_host=1)
    assert statuses(found) == ["success"] * 6
    assert len(times) == 7
    assert times[1] - times[0] > 0.9


@pytest.mark.parametrize("status", ["429 Too Many Requests", "503 Service Unavailable"])
def test_a_host_that_wants_a_longer_pause_than_anybody_waits_is_left_alone(tmp_path: Path, status: str) -> None:
    with serve({"*": send(b"", status, Retry_After="3600"), **OPEN}) as site:
        found, _ = fetch(tmp_path, several(site, 20), site, per_host=1, retries=2)
    assert set(statuses(found)) == {"4xx" if status.startswith("4") else "5xx"}
    assert len(site.paths()) == 3  # robots.txt, tdmrep.json, one image
    assert found[-1]["error"] == f"HTTP {status[:3]}; the host is left alone for a while"


def test_retry_after_is_a_number_or_a_date() -> None:
    def wait(text: str) -> float:
        return http_error(503, {"Retry-After": text}).wait

    assert wait("7") == 7
    assert wait("99999999") == 86_400
    assert 86_000 < wait("Wed, 21 Oct 2099 07:28:00 GMT") <= 86_400
    assert wait("Wed, 21 Oct 2015 07:28:00 GMT") == wait("soon") == wait("-3") == wait("") == 0
    assert http_error(404, {"Retry-After": "7"}).wait == 0


def test_a_host_that_keeps_failing_is_left_alone_and_the_others_are_not(tmp_path: Path) -> None:
    with serve({**OPEN, "*": lambda _: None}) as dead, serve({"*": send(GOOD)}) as good:
        found, _ = fetch(
            tmp_path, several(dead, 40) + several(good, 5), dead, good, timeout=0.2, per_host=1, concurrency=4
        )
        asked = len(dead.paths())
        later, _ = fetch(tmp_path, several(dead, 3, "later"), dead, timeout=0.2)
        assert len(dead.paths()) == asked
    assert statuses(found) == ["connect"] * 40 + ["success"] * 5
    assert (
        asked <= 2 + 2 * 6
    )  # robots.txt and tdmrep.json, five in a row, one more after the rest; aiohttp may send each twice
    assert found[39]["error"] == "the server closed the connection; the host is left alone for a while"
    assert statuses(later) == ["connect"] * 3


def test_a_host_that_comes_back_is_asked_again(tmp_path: Path) -> None:
    count = iter(range(100))

    def shaky(wire: Wire) -> None:
        if next(count) >= 10:  # aiohttp sends each of the five twice
            wire.answer(GOOD)

    with serve({**OPEN, "*": shaky}) as site:
        found, _ = fetch(tmp_path, several(site, 20), site, timeout=0.2, per_host=1)
    assert sorted(statuses(found)) == ["connect"] * 5 + ["success"] * 15


def test_a_dripping_host_does_not_hold_a_part_for_each_of_its_urls(tmp_path: Path) -> None:
    with serve({**OPEN, "*": drip}) as site:
        found, _ = fetch(tmp_path, several(site, 100), site, timeout=0.2, deadline=0.3, per_host=4)
        assert len(site.paths()) < 20
    assert statuses(found) == ["timeout"] * 100


def test_a_part_to_which_nothing_comes_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the event loop does: here every request hangs where no other limit ends it."""

    async def hang(*_: object) -> None:
        await asyncio.sleep(60)

    monkeypatch.setattr("vlmdata.download.fetch.Client.image", hang)
    with serve({"*": send(GOOD)}) as site:
        found, _ = fetch(tmp_path, several(site, 10), site, deadline=0.2)
    assert statuses(found) == ["timeout"] * 10
    assert found[0]["error"] == "nothing came to the whole part for 0.4 s"
    assert not [thread for thread in threading.enumerate() if thread.name == "vlmdata-fetch"]


def test_the_tail_has_as_long_as_the_rest_took_and_an_hour_more_while_its_hosts_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)

    def verdict(watch: Watch, left: int, opens: float = 0) -> str:
        return watch.verdict(left, now, opens) or ""  # something drips all the time

    watch = Watch(100, 10)
    assert not verdict(watch, 11)
    now += 500
    assert not verdict(watch, 11)  # no tail yet, however long it takes
    assert not verdict(watch, 10)
    now += 499
    assert not verdict(watch, 3)
    now += 2
    assert "90%" in verdict(watch, 3)
    watch.used()
    assert not verdict(watch, 3)
    now += 21
    assert "90%" in verdict(watch, 3)
    assert not verdict(watch, 3, opens=now + 1000)
    now += 3500
    watch.used()
    assert not verdict(watch, 3)
    now += 100
    watch.used()
    assert "too slow" in verdict(watch, 3)
    short = Watch(100, 10)
    assert not verdict(short, 10)
    now += 19
    assert not verdict(short, 10)
    now += 2
    assert "90%" in verdict(short, 10)
    assert not verdict(Watch(5, 10), 1)
    assert Watch(5, 10).verdict(1, now - 25, now + 25) is None


def test_the_tail_of_a_part_waits_for_a_slow_host_that_answers_and_for_no_other(tmp_path: Path) -> None:
    """A host whose robots.txt spaces its 5 requests further than the other 95 have taken twice over."""
    with (
        serve({"*": send(GOOD)}) as quick,
        serve({"*": send(GOOD), "/robots.txt": send(b"User-agent: *\nCrawl-delay: 0.9\n")}) as slow,
    ):
        found, _ = fetch(tmp_path, several(quick, 95) + several(slow, 5), quick, slow, deadline=0.9)
    assert statuses(found) == ["success"] * 100


def test_bodies_wait_for_the_bytes_that_a_process_may_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    total = 300_000
    network.NETWORK.budget = budget = Budget(total)
    lowest = [total]
    take = Budget.take

    def watched(self: Budget, reader: object, size: int) -> bool:
        taken = take(self, reader, size)
        lowest[0] = min(lowest[0], self.free)
        return taken

    monkeypatch.setattr(Budget, "take", watched)
    with serve({"*": send(GOOD + b"\0" * 200_000), **OPEN}) as site:
        found = parts_at_once(tmp_path, [several(site, 12, name) for name in "ab"], site, per_host=8, max_bytes=250_000)
    assert found == [["success"] * 12] * 2
    assert lowest[0] > -250_000  # one body above it, at most
    assert budget.free == total
    assert not budget._readers


def test_what_failed_halfway_gives_its_bytes_back(tmp_path: Path) -> None:
    routes = {**OPEN, "/short": send(GOOD, length=9999), "/big": send(b"x" * 200_000)}
    with serve(routes | {"/drip": drip, "/silent": silent}) as site:
        urls = [site.url(path) for path in ("/short", "/big", "/drip", "/silent")]
        found, _ = fetch(tmp_path, urls, site, max_bytes=150_000, deadline=0.5)
    assert statuses(found) == ["connect", "too_large", "timeout", "timeout"]
    assert network.NETWORK.budget.free == network.BODIES
    assert all(host.idle for host in network.NETWORK.hosts._hosts.values())


@contextmanager
def names_answered(monkeypatch: pytest.MonkeyPatch, answer: Callable[[str], list[str]]) -> Iterator[list[str]]:
    """The system's own lookup answers with what `answer` says, and the lookups are noted."""
    asked: list[str] = []

    def getaddrinfo(host: str, port: int, *_: object) -> list:
        asked.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in answer(host)]

    with monkeypatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", getaddrinfo)
        yield asked


def test_a_host_has_one_robots_txt_however_its_name_is_spelt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serve({"*": send(GOOD)}) as site, names_answered(monkeypatch, lambda _: ["127.0.0.1"]):
        urls = [f"http://{name}.test:{site.port}/{name}.jpg" for name in ("EXAMPLE", "example", "Example")]
        found, _ = fetch(tmp_path, urls, allow_hosts=[f"example.test:{site.port}"])
        assert site.paths().count("/robots.txt") == 1
    assert statuses(found) == ["success"] * 3


def test_a_name_that_leads_to_a_private_address_is_blocked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serve({"*": send(GOOD)}) as site, names_answered(monkeypatch, lambda _: ["127.0.0.1"]):
        found, _ = fetch(tmp_path, [f"http://inside.example:{site.port}/a.jpg"])
        assert site.seen == []
    assert statuses(found) == ["blocked"]


def test_a_name_that_changes_its_address_after_the_check_gains_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DNS rebinding: public when it is looked up first, the machine itself afterwards; nothing is remembered."""
    monkeypatch.setattr("vlmdata.download.address._FRESH", 0.0)
    answers = iter(["8.8.8.8"])
    reached: list[str] = []

    def no_route(self: Gate, info: tuple) -> socket.socket:
        reached.append(info[4][0])
        raise OSError(101, "Network is unreachable")  # so that nothing leaves the machine

    with serve({"*": send(GOOD)}) as site, names_answered(monkeypatch, lambda _: [next(answers, "127.0.0.1")]):
        monkeypatch.setattr(Gate, "socket", no_route)
        urls = [f"http://rebind.example:{site.port}/{number}.jpg" for number in range(4)]
        found, _ = fetch(tmp_path, urls, retries=2)
        monkeypatch.undo()
        assert site.seen == []
    assert set(statuses(found)) <= {"connect", "blocked"}
    assert reached
    assert all(is_public(address) for address in reached)


def test_a_name_is_asked_for_once_also_when_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    async def ask() -> None:
        names = Names()
        for _ in range(2):
            await asyncio.gather(*(names.ask("good.example", 5) for _ in range(3)))
            answers = await asyncio.gather(*(names.ask("none.example", 5) for _ in range(3)), return_exceptions=True)
            assert all(isinstance(answer, socket.gaierror) for answer in answers)
        names.close()

    def answer(host: str) -> list[str]:
        if host == "none.example":
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return ["8.8.8.8"]

    with names_answered(monkeypatch, answer) as asked:
        asyncio.run(ask())
    assert sorted(asked) == ["good.example", "none.example"]


def test_a_name_without_an_answer_in_time_is_dns_and_does_not_wait_for_the_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    over = threading.Event()

    def never(_: str) -> list[str]:
        over.wait(5)
        raise Blocked("too late")

    with names_answered(monkeypatch, never):
        found, _ = fetch(tmp_path, ["http://slow.example/a.jpg"], timeout=0.2, deadline=1)
        over.set()
    assert statuses(found) == ["dns"]
    assert found[0]["error"] == "robots.txt: no answer within 0.2 s"


def test_only_the_last_hosts_are_remembered_and_none_that_is_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    from vlmdata.download.fetch import parse_url

    monkeypatch.setattr(hosts, "_REMEMBERED", 20)
    known = hosts.Hosts()
    first = known.of(parse_url("http://h0.example/"))
    first.enter(time.monotonic())
    for number in range(100):
        known.of(parse_url(f"http://h{number}.example/"))
    assert len(known._hosts) <= 21
    assert known.of(parse_url("https://h0.example/")) is first


def test_backoff_without_retry_after_doubles_and_ends_with_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    host = hosts.Host()
    host.limit = 4
    host.ask_robots()
    assert not host.admits(now)
    assert host.admits(now, robots=True)
    host.know_robots(None)
    for number in range(4):
        host.asked_to_wait(FetchError("5xx", "HTTP 503"))
        assert not host.admits(now + 0.24 * 2**number)
        assert host.admits(now + 0.76 * 2**number)
        now += 1 * 2**number
    host.enter(now)
    assert not host.admits(now)  # one at a time until it answers
    host.answered()
    assert host.admits(now)


def test_a_host_that_opens_while_it_is_looked_at_still_calls_who_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    async def ask() -> None:
        host = Host()
        host.interval = 0.05
        host.enter(time.monotonic())
        host.leave()
        opens = host._next
        reads = iter([opens - 0.002, opens - 1e-6])  # then it has opened
        clock = SimpleNamespace(monotonic=lambda: next(reads, max(time.monotonic(), opens + 1e-6)))
        monkeypatch.setattr("vlmdata.download.hosts.time", clock)
        async with asyncio.timeout(5):
            await host.turn(20)

    asyncio.run(ask())
