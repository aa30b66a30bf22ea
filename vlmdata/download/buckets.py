"""The hosts in buckets, so that one of several processes asks a host, and the others do not."""

import zlib
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

# The authority of a URL of the web; of a local one all but the fragment, so that a video's frames stay together.
_WHOSE = r"^(?P<whose>[A-Za-z][A-Za-z0-9+.-]*://[^/?#]*|[^#]*)"


@dataclass(frozen=True)
class Bucket:
    """Some of the hosts: number `number` of `of` buckets. workers: processes that download at once, a bucket each."""

    number: int = 0
    of: int = 1
    workers: int = 1

    def has(self, host: str) -> bool:
        """Whether a host, by the name that `hosts.py` gives it, is one of this bucket."""
        return self.of == 1 or _bucket(host, self.of) == self.number


def buckets(urls: pa.ChunkedArray, of: int) -> np.ndarray:
    """int64 [n]: the bucket of each URL. Equal URLs are in one bucket, as all URLs of a host are, and all frames of a
    local video; other local files are spread by their names."""
    from vlmdata.download.failure import FetchError  # aiohttp, which the command line does not need
    from vlmdata.download.fetch import parse_url
    from vlmdata.download.hosts import host_name

    urls = pc.fill_null(urls, "")  # tombstones, for which nothing is asked
    whose = pc.struct_field(pc.extract_regex(urls, _WHOSE), "whose").combine_chunks().dictionary_encode()
    numbers = []
    for name in whose.dictionary.to_pylist():
        try:
            host = host_name(parse_url(f"{name}/")) if "://" in name else name
        except FetchError:
            host = name  # it is asked of nobody
        numbers.append(_bucket(host, of))
    return np.array(numbers, np.int64)[whose.indices.to_numpy()] if len(urls) else np.zeros(0, np.int64)


def _bucket(host: str, of: int) -> int:
    """`www.example.org` is where `example.org` is: the one often redirects to the other."""
    return zlib.crc32(host.lower().removeprefix("www.").encode()) % of
