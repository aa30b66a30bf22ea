"""The command line in a process that is forked from one that has imported all that a run needs, but has run nothing.

For tests that start it many times: a new interpreter imports for ten seconds and more. The process forked from is
started once a worker, with the first command; it has one thread, but for one of jemalloc, which knows of forks.
"""

import atexit
import multiprocessing
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import IO

IMPORTED = [
    "vlmdata.cli",
    "vlmdata.console",
    "vlmdata.plan",
    "vlmdata.recipe_file",
    "vlmdata.flows.curate",
    "vlmdata.download.images",
    "vlmdata.lite",
    "vlmdata.signals.clip",
    "vlmdata.train.loop",
    "prefect.server.api.server",
    "img2dataset.downloader",
    "open_clip",
    "pandas",
    "accelerate",
    "torch._dynamo",
]


@cache
def _server() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    return context


@contextmanager
def command(folder: Path, *arguments: str, environment: dict[str, str]) -> Iterator[tuple[ForkServerProcess, IO[str]]]:
    """`vlmdata` with `arguments` in `folder`, and with just these variables: the process, and what it writes on stderr.

    The block's end waits for the end of the process.
    """
    reader, writer = _server().Pipe(duplex=False)
    process = _server().Process(target=_run, args=(folder, arguments, environment, writer))
    process.start()
    writer.close()
    with open(reader.fileno(), encoding="utf-8", closefd=False) as told, reader:
        try:
            yield process, told
        finally:
            process.join()


def _run(folder: Path, arguments: list[str], environment: dict[str, str], stderr: Connection) -> None:
    os.dup2(stderr.fileno(), 2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    from prefect.context import refresh_global_settings_context

    from vlmdata import cli

    refresh_global_settings_context()
    sys.argv = ["vlmdata", *arguments]
    try:
        cli.main()
    finally:
        atexit._run_exitfuncs()  # which multiprocessing leaves out: servers end by it
