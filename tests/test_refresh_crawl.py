"""A site is crawled again: only pages that have changed or are new are read, by what host and sitemap say."""

import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from vlmdata import ingest, refresh
from vlmdata.dataset import Dataset
from vlmdata.recipe import CrawlSource


class Site:
    """path -> (html, etag, last_modified); conditional requests are answered by 304. `asked` counts (path, status)."""

    def __init__(self):
        self.pages, self.dates, self.asked = {}, {}, Counter()
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                status, body, headers = site.answer(self.path, self.headers)
                site.asked[self.path, status] += 1
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def answer(self, path, asked):
        if path == "/sitemap.xml":
            listed = "".join(
                f"<url><loc>{self.url}{page}</loc><lastmod>{date}</lastmod></url>" for page, date in self.dates.items()
            )
            body = f"<urlset xmlns='http://www.sitemaps.org/schemas/sitemap/0.9'>{listed}</urlset>".encode()
            return 200, body, {"Content-Type": "text/xml"}
        if path not in self.pages:
            return 404, b"", {}
        html, etag, modified = self.pages[path]
        headers = {"Content-Type": "text/html"}
        headers |= {"ETag": etag} if etag else {}
        headers |= {"Last-Modified": modified} if modified else {}
        if (etag and asked["If-None-Match"] == etag) or (modified and asked["If-Modified-Since"] == modified):
            return 304, b"", headers
        return 200, html.encode(), headers


def page(*captions, links=()):
    images = "".join(f"<img src='/{len(caption)}.jpg' alt='{caption}'>" for caption in captions)
    return f"<html><body>{images}{''.join(f'<a href={link}>x</a>' for link in links)}</body></html>"


@pytest.fixture
def site():
    made = Site()
    yield made
    made.server.shutdown()
    made.server.server_close()


def captions(dataset, table):
    return sorted(caption for part in table.parts for caption in dataset.read_part(part)["caption"].to_pylist())


def test_pages_that_answer_304_or_whose_sitemap_date_stands_are_not_read_again(site, tmp_path):
    when = "Mon, 05 Oct 2026 10:00:00 GMT"
    site.pages = {
        "/": (page("the first page has this", links=["/etag", "/dated", "/plain"]), '"a"', None),
        "/etag": (page("a page known by its etag"), '"b"', None),
        "/dated": (page("a page known by its date of change"), None, when),
        "/plain": (page("a page of which nobody says anything"), None, None),
        "/listed": (page("a page that only the sitemap names"), None, None),
    }
    site.dates = {"/listed": "2026-10-05"}
    source = CrawlSource(kind="crawl", name="site", start=[site.url + "/"], delay=0, autothrottle=False)
    dataset = Dataset(str(tmp_path / "it"))
    found = ingest.read_source(dataset, source, "key")
    assert len(captions(dataset, found)) == 5

    site.asked.clear()
    again = refresh.read_again(dataset, source, "key", found)
    assert again == found
    asked = {key: count for key, count in site.asked.items() if key[0] in site.pages}
    assert asked == {("/", 304): 1, ("/etag", 304): 1, ("/dated", 304): 1, ("/plain", 200): 1}

    site.pages["/etag"] = (page("a page known by its etag", "and one more picture on it", links=["/new"]), '"c"', None)
    site.pages["/new"] = (page("a page that is new"), None, None)
    site.pages["/listed"] = (page("the listed page says something else"), None, None)
    site.dates = {"/listed": "2026-11-05"}
    site.asked.clear()
    grown = refresh.read_again(dataset, source, "key", found)
    assert grown.parts[: len(found.parts)] == found.parts
    assert captions(dataset, grown) == sorted(
        [*captions(dataset, found), "and one more picture on it", "a page that is new",
         "the listed page says something else"]
    )  # fmt: skip
    assert site.asked["/", 304] == site.asked["/dated", 304] == site.asked["/etag", 200] == 1

    # what could not be read is not taken for what was read, even where the sitemap's date stands still
    site.pages.pop("/dated")
    site.answer = lambda path, asked, answer=site.answer: (500, b"", {}) if path == "/etag" else answer(path, asked)
    refresh.read_again(dataset, source, "key", grown)
    seen = ingest.seen(dataset, "key")
    assert site.url + "/dated" not in seen
    assert "etag" not in seen[site.url + "/etag"]
