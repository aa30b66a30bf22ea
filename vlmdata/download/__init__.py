"""Images: fetched safely through img2dataset's Downloader, decoded, made smaller and stored, one part at a time.

`address.py` says which addresses may be reached, `fetch.py` asks for URLs, `hosts.py` is polite to them, `frontier.py`
queues a part's URLs by host and `network.py` runs it all, with the bytes that `budget.py` grants and for as long as
`watch.py` waits. `local.py` and `stored.py` read files that are here, `video.py` frames of videos. `consent.py` and
`tdmrep.py` read what hosts say, `lists.py`, `optout.py` and `known.py` what the user lists. `decode.py` turns bytes
into stored JPEGs, and `images.py` puts img2dataset to work with all of them (`seams.py`).
"""

import os
from collections.abc import Callable

import pyarrow as pa

from vlmdata.download.known import Known
from vlmdata.download.optout import OptOut
from vlmdata.recipe import Consent, Download

VERSION = 3


def download_part(
    pairs: pa.Table,
    tar: str | os.PathLike[str],
    stored_tar: str,
    options: Download,
    consent: Consent,
    roots: dict[str, str],
    optout: OptOut | None = None,
    known: Known | None = None,
    workers: int = 1,
    told: Callable[[str, str, str | None], None] | None = None,
) -> tuple[pa.Table, pa.Table]:
    """Get the images of one part of `pairs`.

    pairs: rows of the `pairs` schema; a URL's rows share one request and one stored image, but what a source holds
        already (`stored.py`) serves that source's rows alone.
    tar: the local file to write: `<stored_key>.jpg` for each image got, in the order of `pairs`, no times in it.
        `stored_key` is the uid of the URL's first row that was asked for.
    stored_tar: what stands in the column of that name.
    roots: source name -> folder of its local files, whose URLs are `<source name>:/<percent-encoded path>`.
    optout, known: the user's lists: what the first names is neither asked for nor stored, what the second does is not
        stored; both have the status `optout`.
    workers: processes that download at once; each keeps to its share of what may be asked of one host.
    told: is called with each URL, its status and its error when it is done; may raise to stop the part.

    Returns (images, observations), both with one row for each of `pairs`, in its order. What failed has one of the
    classes of DESIGN.md in `download_status` and a line of words in `error`. The same answers give the same bytes.
    Safe to run in several threads of a process at once.
    Raises DataError for an `expected_hash` that is none, MachineError when the disk is at fault or rows got lost.
    """
    # img2dataset, aiohttp and OpenCV take seconds to import, and the command line needs none of them.
    from vlmdata.download import images

    return images.download(
        pairs, tar, stored_tar, options, consent, roots, optout or OptOut(), known or Known(), workers, told
    )
