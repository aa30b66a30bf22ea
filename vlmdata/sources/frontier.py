"""What a crawl has read and what waits, in an SQLite file that a kill at any moment leaves whole.

A page's end, its rows and its links are one transaction: a kill loses the pages in flight, which are read again, and
nothing else.
"""

import json
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from vlmdata.errors import MachineError
from vlmdata.sources.urls import host_and_port, strip_signature

# A page's states. A copy names another page as its canonical one; a page that moved redirects to another; an unchanged
# one was read by an earlier crawl, and is as it was.
WAITING, READ, COPY, MOVED, FAILED, UNCHANGED = range(6)
DEEPEST_SITEMAP = 3

_SCHEMA = """
CREATE TABLE about (crawl TEXT NOT NULL);
CREATE TABLE pages (
    id INTEGER PRIMARY KEY, url TEXT NOT NULL UNIQUE, host TEXT NOT NULL, depth INTEGER NOT NULL,
    state INTEGER NOT NULL DEFAULT 0, outcome TEXT, canonical TEXT,
    pairs INTEGER NOT NULL DEFAULT 0, left_out INTEGER NOT NULL DEFAULT 0, content TEXT, links TEXT
);
CREATE INDEX waiting ON pages (host, depth, id) WHERE state = 0;
CREATE INDEX level ON pages (depth) WHERE state = 0;
CREATE INDEX canonical ON pages (canonical) WHERE canonical IS NOT NULL;
"""
_AWAY = "CREATE TABLE IF NOT EXISTS away (host TEXT PRIMARY KEY, since REAL NOT NULL)"  # seconds since 1970
# What a page's host said of its state, and its sitemap: by which a later crawl asks whether it has changed.
_VALIDATORS = """
CREATE TABLE IF NOT EXISTS validators (
    url TEXT PRIMARY KEY, etag TEXT, modified TEXT, lastmod TEXT, known INTEGER NOT NULL
)"""
_LONGEST_AWAY = 86_400.0  # seconds from the first run that could not reach a host to one that goes on without it
_SECONDS_TO_WAIT = 30.0  # for a crawler of a killed run that is still about to end


@dataclass(frozen=True)
class Waiting:
    """A page to read. host: with its port. depth: links from a start page; below 0 stand sitemaps, nested ones last.
    Two of the same id are the same page."""

    id: int
    url: str
    host: str
    depth: int
    etag: str | None = None  # of an earlier crawl, as is `modified`
    modified: str | None = None

    @property
    def sitemap(self) -> bool:
        return self.depth < 0


class Frontier:
    """The pages of one crawl, in the file `path`, which one process at a time can hold.

    crawl: what is crawled; the file of another crawl is begun anew. per_host: pages in hand at once of one host.
    With `max_depth` the pages of one depth are read to the last before those of the next, so that a page's depth is
    that of the shortest way to it.
    Raises MachineError when the file cannot be used.
    """

    def __init__(
        self, path: Path, crawl: str, per_host: int = 1, max_depth: int | None = None, max_pages: int | None = None
    ) -> None:
        self.per_host, self.max_depth, self.max_pages = per_host, max_depth, max_pages
        self._db = _connect(path, crawl)
        self._in_hand: dict[int, Waiting] = {}
        self._aside: dict[int, Waiting] = {}
        self._left: set[str] = set()
        self._level = 0
        self._ready: dict[str, None] = {}  # hosts that may have a page to give, in turn
        self.read, self.pairs = self._db.execute(
            "SELECT count(*), coalesce(sum(pairs), 0) FROM pages WHERE state = ? AND depth >= 0", (READ,)
        ).fetchone()
        self._find_level()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._db.close()

    def add(self, urls: Iterable[str], depth: int) -> None:
        """Let pages wait; those known already stay what they are."""
        with self._db:
            self._add(urls, depth)

    def revisit(self, pages: Mapping[str, str | None]) -> None:
        """Let the pages of an earlier crawl, as `visited` gave them, wait in a frontier that has none yet."""
        if self._db.execute("SELECT 1 FROM pages LIMIT 1").fetchone():
            return
        with self._db:
            for url, state in pages.items():
                about = json.loads(state or "{}")
                self._db.execute(
                    "INSERT INTO pages (url, host, depth) VALUES (?, ?, ?)",
                    (url, host_and_port(url), about.get("depth", 0)),
                )
                known = [about.get(name) for name in ("etag", "modified", "lastmod")]
                self._db.execute("INSERT INTO validators VALUES (?, ?, ?, ?, 1)", (url, *known))
        self._find_level()

    def visited(self) -> dict[str, str]:
        """The pages and sitemaps that a later crawl should ask about, with what it needs for it, as JSON."""
        found = self._db.execute(
            "SELECT url, depth, etag, modified, lastmod FROM pages LEFT JOIN validators USING (url) "
            "WHERE state IN (?, ?, ?) UNION ALL "
            "SELECT url, depth, NULL, NULL, NULL FROM pages "  # they are not known as they are now
            "WHERE depth >= 0 AND state = ? AND outcome NOT IN ('HTTP 404', 'HTTP 410') ORDER BY url",
            (READ, COPY, UNCHANGED, FAILED),
        )
        names = ("depth", "etag", "modified", "lastmod")
        return {
            url: json.dumps({name: value for name, value in zip(names, rest, strict=True) if value is not None})
            for url, *rest in found
            if strip_signature(url)[0] == url  # what gives access is not recorded; a link leads there again
        }

    def retry(self, url: str) -> None:
        """Let a page that could not be read in an earlier run wait once more."""
        with self._db:
            self._db.execute("UPDATE pages SET state = 0, outcome = NULL WHERE url = ? AND state = ?", (url, FAILED))
        self._find_level()

    def next(self) -> Waiting | None:
        """The nearest page of the hosts in turn, which is in hand from now on; None when there is none just now."""
        if self.max_pages is not None and self.read + len(self._in_hand) >= self.max_pages:
            return None
        for host in list(self._ready):
            del self._ready[host]
            page = self._nearest(host)
            if page is not None:
                self._in_hand[page.id] = page
                self._ready[host] = None
                return page
        return None

    def ended(self) -> bool:
        """Whether there is nothing more to ask for, once the pages in hand have ended."""
        if not self._room():
            return True
        waiting = self._db.execute("SELECT DISTINCT host FROM pages WHERE state = 0")
        return all(host in self._left for (host,) in waiting)

    def keep(
        self,
        page: Waiting,
        url: str,
        content: object,
        pairs: int,
        links: Sequence[str],
        canonical: str | None = None,
        left_out: int = 0,
        etag: str | None = None,
        modified: str | None = None,
    ) -> None:
        """A page was read; it stands at `url`, which is another than it was asked for where it redirects.

        content: what it holds, as JSON has it, with `pairs` rows. canonical: the page that it is a copy of.
        left_out: images that were not read. etag, modified: what its host says of its state.
        """
        with self._db:
            self._db.execute(
                "INSERT INTO validators VALUES (?, ?, ?, NULL, 0) ON CONFLICT (url) DO UPDATE "
                "SET etag = excluded.etag, modified = excluded.modified",
                (url, etag, modified),
            )
            if url != page.url:
                self._add([url], page.depth)
                self._db.execute(
                    "UPDATE pages SET state = ?, canonical = ? WHERE id = ? AND state = 0", (MOVED, url, page.id)
                )
            if self._room() and self._state(url)[0] in (WAITING, MOVED, FAILED):
                self._db.execute(
                    "UPDATE pages SET state = ?, outcome = NULL, canonical = ?, content = ?, links = ?, pairs = ?, "
                    "left_out = ?, depth = min(depth, ?) WHERE url = ?",
                    (COPY, canonical, json.dumps(content, ensure_ascii=False), json.dumps(links), pairs, left_out,
                     page.depth, url),
                )  # fmt: skip
                if canonical is None:
                    self._promote(url)
                else:
                    self._add([canonical], page.depth)
                    self._settle(url)
            self._settle_copies_of(page.url)
        self._release(page)

    def keep_unchanged(self, page: Waiting) -> None:
        """A page's host says that it is as an earlier crawl has read it."""
        with self._db:
            self._db.execute("UPDATE pages SET state = ? WHERE id = ? AND state = 0", (UNCHANGED, page.id))
        self._release(page)

    def keep_sitemap(
        self, page: Waiting, pages: Iterable[str], nested: Iterable[str], lastmod: Mapping[str, str] | None = None
    ) -> None:
        """A sitemap was read. Its pages are as near as a start page. lastmod: page -> when the sitemap says that it was
        changed; where that is as in an earlier crawl the page is unchanged."""
        pages = list(pages)
        dated = [(url, lastmod[url]) for url in pages if url in lastmod] if lastmod else []
        with self._db:
            held = [one.url for one in self._in_hand.values()]
            for url, date in dated:
                known = self._db.execute("SELECT known, lastmod FROM validators WHERE url = ?", (url,)).fetchone()
                if known == (1, date) and url not in held:
                    self._db.execute("UPDATE pages SET state = ? WHERE url = ? AND state = 0", (UNCHANGED, url))
            self._db.executemany(
                "INSERT INTO validators VALUES (?, NULL, NULL, ?, 0) ON CONFLICT (url) DO UPDATE "
                "SET lastmod = excluded.lastmod",
                dated,
            )
            if page.depth + 1 < 0:
                self._add(nested, page.depth + 1)
            self._add(pages, 0)
            self._db.execute("UPDATE pages SET state = ? WHERE id = ?", (READ, page.id))
        self._release(page)

    def fail(self, page: Waiting, reason: str | None) -> None:
        """A page could not be read: copies that name it then stand for themselves. None: nobody need know."""
        with self._db:
            self._db.execute(
                "UPDATE pages SET state = ?, outcome = ? WHERE id = ? AND state = 0", (FAILED, reason, page.id)
            )
            self._settle_copies_of(page.url)
        self._release(page)

    def holds(self, page: Waiting) -> bool:
        """Whether a page is in hand still."""
        return page.id in self._in_hand

    def set_aside(self, page: Waiting) -> None:
        """A page could not be read, and the answers of its host's others decide what that means: `fail` or `leave` it
        then. For the next run it waits."""
        self._release(page)
        self._aside[page.id] = page

    def idle(self) -> bool:
        """Whether no page is in hand, those set aside apart."""
        return not self._in_hand

    def leave(self, page: Waiting) -> None:
        """Put a page back and give out none of its host in this run; they wait for the next one."""
        self._left.add(page.host)
        self._release(page)

    def away_for_long(self, host: str) -> bool:
        """Whether a host could not be reached in a run a day ago, nor in any since."""
        found = self._db.execute("SELECT since FROM away WHERE host = ?", (host,)).fetchone()
        return found is not None and time.time() - found[0] > _LONGEST_AWAY

    def note_away(self, hosts: Iterable[str]) -> None:
        """At the end of a run, the hosts that could not be reached."""
        known = dict(self._db.execute("SELECT host, since FROM away").fetchall())
        with self._db:
            self._db.execute("DELETE FROM away")
            rows = [(host, known.get(host, time.time())) for host in hosts]
            self._db.executemany("INSERT INTO away VALUES (?, ?)", rows)

    def read_of(self, host: str) -> str | None:
        """The URL of a page of the host that was read."""
        found = self._db.execute("SELECT url FROM pages WHERE state = ? AND host = ? LIMIT 1", (READ, host)).fetchone()
        return found[0] if found else None

    def content(self) -> Iterator[Any]:
        """What the pages that were read hold."""
        for (text,) in self._db.execute("SELECT content FROM pages WHERE state = ? AND pairs > 0", (READ,)):
            yield json.loads(text)

    def counts(self) -> dict[str, int]:
        """Pages that are copies of others, that wait, and that are unchanged; images left out of the pages read."""
        copies, waiting, left_out, unchanged = self._db.execute(
            "SELECT count(*) FILTER (WHERE state = ?), count(*) FILTER (WHERE state = 0), "
            "coalesce(sum(left_out) FILTER (WHERE state = ?), 0), count(*) FILTER (WHERE state = ?) FROM pages",
            (COPY, READ, UNCHANGED),
        ).fetchone()
        return {"copies": copies, "waiting": waiting, "left_out": left_out, "unchanged": unchanged}

    def failures(self) -> dict[str, int]:
        """How many pages could not be read, by reason; the 20 most frequent ones."""
        found = self._db.execute(
            "SELECT outcome, count(*) AS n FROM pages WHERE state = ? AND outcome IS NOT NULL "
            "GROUP BY outcome ORDER BY n DESC, outcome LIMIT 20", (FAILED,),
        )  # fmt: skip
        return dict(found.fetchall())

    # Inside a transaction

    def _add(self, urls: Iterable[str], depth: int) -> None:
        if self.max_depth is not None and depth > self.max_depth:
            return
        rows = [(url, host_and_port(url), depth) for url in urls]
        self._db.executemany(
            "INSERT INTO pages (url, host, depth) VALUES (?, ?, ?) ON CONFLICT (url) DO UPDATE "
            "SET depth = excluded.depth WHERE state = 0 AND excluded.depth BETWEEN 0 AND depth",
            rows,
        )
        self._ready.update(dict.fromkeys(host for _, host, _ in rows))

    def _promote(self, url: str) -> None:
        """Let a copy, whose content is at hand, count as read and its links wait."""
        if not self._room():
            return
        links, depth, pairs = self._db.execute(
            "SELECT links, depth, pairs FROM pages WHERE url = ?", (url,)
        ).fetchone()  # fmt: skip
        self._db.execute("UPDATE pages SET state = ?, canonical = NULL, links = NULL WHERE url = ?", (READ, url))
        self._add(json.loads(links), depth + 1)
        self.read += 1
        self.pairs += pairs

    def _settle(self, url: str) -> None:
        """Promote copies whose canonical page cannot be read, or is in the end a copy of themselves."""
        way: dict[str, int] = {}
        state, further = self._state(url)
        while state in (COPY, MOVED) and url not in way:
            way[url] = state
            url = further
            state, further = self._state(url)
        if url in way:
            round_trip = list(way)[list(way).index(url) :]
            for copy in round_trip:
                if way[copy] == COPY:
                    self._promote(copy)
        elif state == FAILED:
            for copy in [address for address, kind in way.items() if kind == COPY][-1:]:
                self._promote(copy)

    def _settle_copies_of(self, url: str) -> None:
        for (copy,) in self._db.execute("SELECT url FROM pages WHERE canonical = ?", (url,)).fetchall():
            self._settle(copy)

    def _state(self, url: str) -> tuple[int, str]:
        state, canonical = self._db.execute("SELECT state, canonical FROM pages WHERE url = ?", (url,)).fetchone()
        return state, canonical

    # In hand and left is what only this run knows.

    def _room(self) -> bool:
        return self.max_pages is None or self.read < self.max_pages

    def _release(self, page: Waiting) -> None:
        (self._in_hand if page.id in self._in_hand else self._aside).pop(page.id)
        self._ready[page.host] = None
        self._find_level()

    def _nearest(self, host: str) -> Waiting | None:
        """Pages of an earlier crawl whose sitemap dates them wait for what their host's sitemaps say now."""
        held = sum(page.host == host for page in self._in_hand.values())
        if host in self._left or held >= self.per_host:
            return None
        aside = sum(page.host == host for page in self._aside.values())
        found = self._db.execute(
            "SELECT id, url, host, depth, etag, modified FROM pages LEFT JOIN validators USING (url) "
            "WHERE state = 0 AND host = ? AND NOT (known = 1 AND lastmod IS NOT NULL AND EXISTS ("
            "SELECT 1 FROM pages AS sitemap WHERE sitemap.state = 0 AND sitemap.host = ? AND sitemap.depth < 0)) "
            "ORDER BY depth, id LIMIT ?",
            (host, host, held + aside + 1),
        )
        page = next((Waiting(*row) for row in found if row[0] not in self._in_hand and row[0] not in self._aside), None)
        return None if page is None or (self.max_depth is not None and page.depth > self._level) else page

    def _find_level(self) -> None:
        """The depth that is read now; at another one every host may have pages to give."""
        level = self._db.execute("SELECT min(depth) FROM pages WHERE state = 0").fetchone()[0]
        if level is not None and (level != self._level or not self._ready):
            self._level = level
            hosts = self._db.execute("SELECT DISTINCT host FROM pages WHERE state = 0")
            self._ready.update(dict.fromkeys(host for (host,) in hosts))


def _connect(path: Path, crawl: str) -> sqlite3.Connection:
    try:
        db = sqlite3.connect(path, timeout=_SECONDS_TO_WAIT)
        # One process at a time, which WAL then needs no shared memory for. NORMAL: a power failure may take the last
        # transactions, whole ones, whose pages are then read again.
        db.executescript("PRAGMA locking_mode = EXCLUSIVE; PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL;")
        held = db.execute("SELECT 1 FROM sqlite_master WHERE name = 'about'").fetchone()
        if held and db.execute("SELECT crawl FROM about").fetchone() == (crawl,):
            db.execute(_AWAY)
            db.execute(_VALIDATORS)
            return db
        with db:
            db.execute("DROP TABLE IF EXISTS about")
            db.execute("DROP TABLE IF EXISTS pages")
            db.execute("DROP TABLE IF EXISTS away")
            db.execute("DROP TABLE IF EXISTS validators")
            for statement in (*_SCHEMA.strip().split(";\n"), _AWAY, _VALIDATORS):
                db.execute(statement)
            db.execute("INSERT INTO about VALUES (?)", (crawl,))
    except sqlite3.Error as error:
        raise MachineError(f"{path}: {error}; delete the file to begin this crawl anew") from error
    return db
