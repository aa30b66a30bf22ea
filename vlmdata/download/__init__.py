"""Images: fetched safely through img2dataset's Downloader, decoded, made smaller and stored, one part at a time.

`address.py` says which addresses may be reached, `fetch.py` asks for URLs (`body.py` reads what comes), `hosts.py` is
polite to them, `frontier.py` queues a part's URLs by host and `network.py` runs it all, with the bytes that `budget.py`
grants and for as long as `watch.py` waits. `local.py` and `stored.py` read files that are here, `video.py` frames of
videos. `consent.py` and `tdmrep.py` read what hosts say, `lists.py`, `optout.py` and `known.py` what the user lists.
`decode.py` turns bytes into stored JPEGs, and `images.py` puts img2dataset to work with all of them (`seams.py`).
`terms.py` holds what they all go by, and `buckets.py` says which of several processes asks a host.
"""

import os
from collections.abc import Callable

import pyarrow as pa

from vlmdata.download.terms import Terms

__all__ = ["VERSION", "Terms", "download_part"]

VERSION = 3


def download_part(
    pairs: pa.Table,
    tar: str | os.PathLike[str],
    stored_tar: str,
    terms: Terms,
    told: Callable[[str, str, str | None], None] | None = None,
) -> tuple[pa.Table, pa.Table]:
    """Get the images of one part of `pairs`.

    pairs: rows of the `pairs` schema; a URL's rows share one request and one stored image, but what a source holds
        already (`stored.py`) serves that source's rows alone.
    tar: the local file to write: `<stored_key>.jpg` for each image got, in the order of `pairs`, no times in it.
        `stored_key` is the uid of the URL's first row that was asked for.
    stored_tar: what stands in the column of that name.
    told: is called with each URL, its status and its error when it is done; may raise to stop the part.

    Returns (images, observations), both with one row for each of `pairs`, in its order. What failed has one of the
    classes of DESIGN.md in `download_status` and a line of words in `error`. The same answers give the same bytes.
    Safe to run in several threads of a process at once.
    Raises DataError for an `expected_hash` that is none, MachineError when the disk is at fault or rows got lost.
    """
    # img2dataset, aiohttp and OpenCV take seconds to import, and the command line needs none of them.
    from vlmdata.download import images

    return images.download(pairs, tar, stored_tar, terms, told)
