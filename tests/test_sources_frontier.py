"""What a crawl knows: the same pages are read whatever order they end in, and a kill loses those in hand alone."""

import random
import sqlite3
from pathlib import Path

import pytest

from vlmdata.errors import MachineError
from vlmdata.sources.frontier import Frontier, Waiting


def url(number: int) -> str:
    return f"http://site.example/{number}"


class Site:
    """Pages that link to each other, fail, redirect, and name canonical pages at random, in rounds and chains too."""

    def __init__(self, draw: random.Random, pages: int = 40) -> None:
        self.links = {n: [draw.randrange(pages) for _ in range(draw.randrange(4))] for n in range(pages)}
        self.failing = {n for n in range(1, pages) if draw.random() < 0.15}
        self.moved = {n: draw.randrange(n) for n in range(1, pages) if draw.random() < 0.15}
        self.canonical = {n: draw.randrange(pages) for n in range(pages) if draw.random() < 0.4}

    def place(self, number: int) -> int:
        """Where a request for a page ends."""
        while number in self.moved:
            number = self.moved[number]
        return number

    def stands(self, number: int) -> bool:
        """Whether a page counts, for its canonical page is itself, cannot be read, or is a copy of it in turn."""
        here, seen = number, set[int]()
        while here not in seen:
            seen.add(here)
            further = self.place(self.canonical.get(here, here))
            if further in self.failing:
                return here == number
            if further == here:
                return here == number
            here = further
        return number in self._round(here)

    def _round(self, number: int) -> set[int]:
        found = set[int]()
        while number not in found:
            found.add(number)
            number = self.place(self.canonical[number])
        return found

    def expected(self) -> list[int]:
        """What must be read, from the first page on."""
        asked, todo, found = {0}, [0], set[int]()
        while todo:
            here = self.place(todo.pop())
            if here in self.failing:
                continue
            further = {self.canonical.get(here, here)}
            if self.stands(here):
                found.add(here)
                further |= set(self.links[here])
            todo += further - asked
            asked |= further
        return sorted(found)

    def answer(self, frontier: Frontier, page: Waiting) -> None:
        here = self.place(int(page.url.rpartition("/")[2]))
        if here in self.failing:
            return frontier.fail(page, "HTTP 404")
        canonical = self.canonical.get(here, here)
        frontier.keep(
            page, url(here), here, 1, [url(n) for n in self.links[here]], None if canonical == here else url(canonical)
        )


def crawled(frontier: Frontier, site: Site, draw: random.Random, kill_after: int | None = None) -> list[int]:
    """Read all, the pages in hand ending in a random order; what is held in the end."""
    frontier.add([url(0)], 0)
    held: list[Waiting] = []
    answers = 0
    while True:
        while (page := frontier.next()) is not None:
            held.append(page)
        if not held or answers == kill_after:
            break
        site.answer(frontier, held.pop(draw.randrange(len(held))))
        answers += 1
    assert held or frontier.ended()
    return sorted(frontier.content())


@pytest.mark.parametrize("seed", range(60))
@pytest.mark.parametrize("max_depth", [None, 3])
def test_the_pages_read_do_not_depend_on_the_order_they_end_in(seed: int, max_depth: int | None) -> None:
    site = Site(random.Random(seed))
    found = []
    for order in range(4):
        with Frontier(Path(":memory:"), "it", per_host=[1, 3, 8, 8][order], max_depth=max_depth) as frontier:
            found.append(crawled(frontier, site, random.Random(order)))
            assert frontier.read == frontier.pairs == len(found[-1]) == len(set(found[-1]))
    assert found[0] == found[1] == found[2] == found[3]
    if max_depth is None:
        assert found[0] == site.expected()


def test_what_is_kept_is_kept_and_what_was_in_hand_waits(tmp_path: Path) -> None:
    site = Site(random.Random(7), 200)
    with Frontier(tmp_path / "whole", "it", 8) as frontier:
        whole = crawled(frontier, site, random.Random(0))
    for step in range(5, 60, 5):
        with Frontier(tmp_path / "cut", "it", 8) as frontier:
            crawled(frontier, site, random.Random(step), kill_after=step)
    with Frontier(tmp_path / "cut", "it", 8) as frontier:
        assert crawled(frontier, site, random.Random(1)) == whole


def test_another_crawl_begins_anew(tmp_path: Path) -> None:
    for crawl, waiting in (("one", 1), ("two", 0), ("two", 0)):
        with Frontier(tmp_path / "f", crawl) as frontier:
            assert frontier.counts()["waiting"] == 0
            frontier.add([url(1)] * waiting, 0)


def test_a_file_that_is_none_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"not a database, but something else" * 100)
    with pytest.raises(MachineError, match="f: file is not a database; delete"):
        Frontier(tmp_path / "f", "it")


def test_one_process_at_a_time(tmp_path: Path) -> None:
    with Frontier(tmp_path / "f", "it"), pytest.raises(sqlite3.OperationalError, match="locked"):
        sqlite3.connect(tmp_path / "f", timeout=0.1).execute("SELECT * FROM pages")


def test_hosts_take_turns_and_one_that_is_left_keeps_its_pages(tmp_path: Path) -> None:
    with Frontier(tmp_path / "f", "it", per_host=2) as frontier:
        frontier.add([f"http://{host}.example/{n}" for host in "ab" for n in range(5)], 0)
        held = [frontier.next() for _ in range(5)]
        assert [page and page.host for page in held] == ["a.example:80", "b.example:80"] * 2 + [None]
        for page in held[:2]:
            assert page
            frontier.leave(page)
        assert frontier.ended()
        assert frontier.next() is None
        assert frontier.counts()["waiting"] == 10


def test_no_more_pages_are_asked_for_than_may_be_read(tmp_path: Path) -> None:
    with Frontier(tmp_path / "f", "it", per_host=8, max_pages=2) as frontier:
        frontier.add(map(url, range(9)), 0)
        one, two, none = (frontier.next() for _ in range(3))
        assert one
        assert two
        assert none is None
        frontier.fail(one, "HTTP 404")
        three = frontier.next()
        assert three
        frontier.keep(three, three.url, 3, 1, [])
        assert not frontier.ended()
        frontier.keep(two, two.url, 2, 1, [])
        assert frontier.ended()
        assert frontier.next() is None


def test_a_page_is_as_deep_as_the_shortest_way_to_it_is_long(tmp_path: Path) -> None:
    # /5 is two links away by the slow page /1, and three by /2 and /3; /6 is within the limit by the former alone.
    links = {0: [1, 2], 1: [5], 2: [3], 3: [5], 5: [6], 6: [7]}
    with Frontier(tmp_path / "f", "it", per_host=2, max_depth=3) as frontier:
        frontier.add([url(0)], 0)
        held: list[Waiting] = []
        while not frontier.ended():
            while (page := frontier.next()) is not None:
                held.append(page)
            slow = [page for page in held if page.url == url(1)]
            page = next((page for page in held if page not in slow), None) or slow[0]
            held.remove(page)
            number = int(page.url.rpartition("/")[2])
            frontier.keep(page, page.url, number, 1, [url(n) for n in links.get(number, [])])
        assert sorted(frontier.content()) == [0, 1, 2, 3, 5, 6]
