"""Beam's runners by the recipe's name, and what each needs to be told before it can start."""

import functools
import importlib.util
import logging
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.runner import PipelineRunner

from vlmdata import extras
from vlmdata.errors import InputError, MachineError
from vlmdata.recipe import Runner, nearest

log = logging.getLogger(__name__)


def flags(runner: Runner) -> list[str]:
    """The recipe's options as Beam's flags: one argument each, whatever is in them."""
    found = []
    for name, value in runner.options.items():
        if isinstance(value, bool):
            found += [f"--{name}"] if value else []
        else:
            found += [f"--{name}={each}" for each in (value if isinstance(value, list) else [value])]
    return found


def check(runner: Runner) -> None:
    """Raises InputError for an option that Beam does not know or that is missing, MachineError for a program or
    package that is not there. Flink's and Spark's job servers may have options of their own, which they check."""
    options = runner.options
    for name, instead in (("runner", "runner.kind"), ("dask_client_address", "runner.address")):
        if name in options:
            raise InputError(f"runner.options.{name}: say {instead} instead")
    if runner.address is not None and runner.kind != "dask":
        raise InputError(f"runner.address: {runner.kind} has none, but options (docs/engines.md)")
    strange = [name for name in options if name not in _known()]
    if strange and runner.kind not in ("flink", "spark"):
        raise InputError(f"runner.options: Beam has no option {strange[0]!r}{nearest(strange[0], _known())}")
    if runner.workers is None and runner.kind in ("flink", "spark", "dataflow") and not in_this_process(runner):
        raise InputError(
            f"runner.workers: {runner.kind} needs to be told how many processes work at most: they share what a host "
            "may be asked"
        )
    if runner.kind in _NEEDS:
        _NEEDS[runner.kind](runner)


def _dask(_: Runner) -> None:
    if importlib.util.find_spec("distributed") is None:
        raise MachineError('runner: dask needs its packages: pip install "vlmdata[dask]"')


def _job_server(runner: Runner) -> None:
    """Beam would otherwise download a job server's jar."""
    jar = f"{runner.kind}_job_server_jar"
    if "job_endpoint" in runner.options:
        return
    if jar not in runner.options:
        raise InputError(
            f"runner: {runner.kind} needs options.job_endpoint, host:port of a running job server, or options.{jar}, "
            f"the path of the jar beam-runners-{runner.kind}-…-job-server, which is then started here (docs/engines.md)"
        )
    if shutil.which("java") is None:
        raise MachineError(f"runner.options.{jar}: there is no java to start it: install one (17 is known to work)")


def _prism(runner: Runner) -> None:
    if not {"job_endpoint", "prism_location"} & runner.options.keys() and shutil.which("prism") is None:
        raise MachineError(f"runner: there is no prism on the PATH, nor options.prism_location: {extras.PRISM}")


def _dataflow(runner: Runner) -> None:
    missing = [name for name in ("project", "region", "temp_location") if name not in runner.options]
    if missing:
        raise InputError(f"runner: dataflow needs options.{missing[0]}, and workers with vlmdata (docs/engines.md)")
    if importlib.util.find_spec("apitools") is None:
        raise MachineError('runner: dataflow needs its packages: pip install "apache-beam[gcp]"')


_NEEDS: dict[str, Callable[[Runner], None]] = {
    "dask": _dask,
    "flink": _job_server,
    "spark": _job_server,
    "prism": _prism,
    "dataflow": _dataflow,
}


@functools.cache
def _known() -> frozenset[str]:
    """The names of all flags that Beam's classes of options have."""
    import apache_beam.runners.dask.dask_runner  # noqa: F401 - its options are known from here on
    from apache_beam.options.pipeline_options import _BeamArgumentParser

    names: set[str] = set()
    for options in PipelineOptions.__subclasses__():
        parser = _BeamArgumentParser()
        options._add_argparse_args(parser)
        names |= {flag.lstrip("-") for flag in parser._option_string_actions}
    return frozenset(names)


def made(runner: Runner, parts: int, at_once: int) -> beam.Pipeline:
    """An empty pipeline. parts: how many elements there will be. at_once: how many are worked on at once."""
    ours, on = _RUNNERS[runner.kind](runner, parts, at_once)
    # Ours first: of a flag that is there twice the last one counts.
    return beam.Pipeline(on, options=PipelineOptions([*ours, *flags(runner)]))


@contextmanager
def pipeline(runner: Runner, parts: int, at_once: int) -> Iterator[beam.Pipeline]:
    """As `made`; it is run when the block ends. Raises MachineError where its engine fails."""
    made_from = made(runner, parts, at_once)
    yield made_from
    if runner.kind == "direct":  # an exception here is a bug, as it would be without Beam
        made_from.run().wait_until_finish()
        return
    try:
        result: Any = made_from.run()
        if runner.kind == "dask":
            with result.client:  # Beam leaves it open
                result.wait_until_finish()
        else:
            result.wait_until_finish()
    except Exception as error:
        log.debug("%s failed", runner.kind, exc_info=True)
        said = str(error).strip().splitlines()
        reason = said[-1] if said else type(error).__name__
        raise MachineError(
            f"runner: {runner.kind} ended the work: {reason} (what is done is kept: run it again; --debug shows more)"
        ) from error


def in_this_process(runner: Runner) -> bool:
    """Whether a portable engine's worker is this very process."""
    default = "LOOPBACK" if runner.kind == "prism" else None
    return runner.options.get("environment_type", default) == "LOOPBACK"


_Made = tuple[list[str], PipelineRunner]


_NEVER = 2**31 - 1  # milliseconds


def _direct_runner(runner: Runner, parts: int, at_once: int) -> _Made:
    from apache_beam.runners.portability.fn_api_runner import FnApiRunner, worker_handlers

    # Once a second a thread of their own would send the workers' outcomes on: it reads a buffer and then empties it,
    # and what came in between was lost (Beam 2.77, data_plane.py). They are sent by size, and when a bundle ends.
    worker_handlers.DATA_BUFFER_TIME_LIMIT_MS = _NEVER
    # Threads: decoding, models and DuckDB release the GIL, and processes would import everything again a stage.
    return ["--direct_running_mode=multi_threading", f"--direct_num_workers={at_once}"], FnApiRunner()


def _dask_runner(runner: Runner, parts: int, at_once: int) -> _Made:
    from apache_beam.runners.dask.dask_runner import DaskRunner

    # Its default puts 128 parts on one worker.
    partitions = max(1, min(parts, 4 * at_once))
    return [f"--dask_npartitions={partitions}", f"--dask_client_address={runner.address}"], DaskRunner()


def _flink_runner(runner: Runner, parts: int, at_once: int) -> _Made:
    from apache_beam.runners.portability.flink_runner import FlinkRunner

    return [f"--parallelism={at_once}"], FlinkRunner()


def _spark_runner(runner: Runner, parts: int, at_once: int) -> _Made:
    from apache_beam.runners.portability.spark_runner import SparkRunner

    return [], SparkRunner()


def _prism_runner(runner: Runner, parts: int, at_once: int) -> _Made:
    from apache_beam.runners.portability.prism_runner import PrismRunner

    location = [] if runner.options.get("prism_location") else [f"--prism_location={shutil.which('prism')}"]
    # LOOPBACK: the worker is this process, as with direct; an EXTERNAL pool of workers is the recipe's to name.
    return [*location, "--environment_type=LOOPBACK"], PrismRunner()


def _dataflow_runner(runner: Runner, parts: int, at_once: int) -> _Made:
    from apache_beam.runners.dataflow.dataflow_runner import DataflowRunner

    # One process a machine, so that `workers` is what hosts are asked by.
    one = "--experiments=no_use_multiple_sdk_containers"
    return [f"--num_workers={min(parts, at_once)}", f"--max_num_workers={at_once}", one], DataflowRunner()


_RUNNERS: dict[str, Callable[[Runner, int, int], _Made]] = {
    "direct": _direct_runner,
    "dask": _dask_runner,
    "flink": _flink_runner,
    "spark": _spark_runner,
    "prism": _prism_runner,
    "dataflow": _dataflow_runner,
}
