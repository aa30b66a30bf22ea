"""Sitemaps: the pages that a site lists itself. https://www.sitemaps.org/protocol.html"""

import lxml.etree
from scrapy.utils.gz import gunzip
from scrapy.utils.sitemap import Sitemap

from vlmdata.sources.urls import web_url

MAX_SITEMAP_BYTES = 52_428_800  # of the protocol, unpacked
_LONGEST_DATE = 100  # characters
_MOST_URLS = 50_000  # of the protocol


def read_sitemap(body: bytes, url: str) -> tuple[dict[str, str], list[str]]:
    """The pages of a sitemap with their `lastmod` ('' for none), and the sitemaps of an index, at most 50,000 of a
    file. It may be compressed by gzip.

    Raises ValueError for what is none, or is larger than 50 MiB unpacked. A file that is cut off gives what it has.
    """
    try:
        if body.startswith(b"\x1f\x8b"):
            body = gunzip(body, max_size=MAX_SITEMAP_BYTES)
        sitemap = Sitemap(body)
        if sitemap.type not in ("urlset", "sitemapindex"):
            raise ValueError("not a sitemap")
        found: dict[str, str] = {}
        for entry in sitemap:
            link = web_url(entry["loc"], url)
            if link:
                found[link] = (entry.get("lastmod") or "").strip()[:_LONGEST_DATE]
            if len(found) >= _MOST_URLS:
                break
    except (lxml.etree.Error, OSError, EOFError, StopIteration) as error:
        raise ValueError("not a sitemap") from error
    return (found, []) if sitemap.type == "urlset" else ({}, list(found))
