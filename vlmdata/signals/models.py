"""How signals use models: loaded once a process, run on batches of one fixed size, known by the hash of their files."""

import hashlib
import threading
from collections.abc import Callable, Sequence
from functools import cache, wraps
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from vlmdata.errors import MachineError
from vlmdata.train.data import ahead

T = TypeVar("T")
_loading = threading.RLock()


def loaded_once(load: Callable[..., T]) -> Callable[..., T]:
    """`load`, called once for the same arguments in a process, however many threads ask at the same time.

    functools.cache alone would let two threads load the same model side by side.
    """
    kept = cache(load)

    @wraps(load)
    def once(*args: object) -> T:
        with _loading:
            return kept(*args)

    return once


def in_batches(
    run: Callable[[list[Any]], np.ndarray],
    items: Sequence[T],
    size: int,
    prepare: Callable[[T], Any] | None = None,
    threads: int = 0,
) -> np.ndarray:
    """`run` over all items, always `size` of them at once, the last batch filled up with its last item.

    A matrix product's rounding depends on its shape: with one shape, an item's values do not depend on how many
    others there are. Returns [len(items), …]; `run` gives one row for each item. Raises ValueError for no items.

    prepare: makes of an item what `run` gets; `threads` of it are at work ahead of `run`, for a device that is not
    the CPU (0: none).
    """

    def batch(start: int) -> list[Any]:
        chosen = list(items[start : start + size])
        return [prepare(item) for item in chosen] if prepare else chosen

    values = []
    for prepared in ahead(batch, range(0, len(items), size), threads):
        values.append(run(prepared + [prepared[-1]] * (size - len(prepared)))[: len(prepared)])
    return np.concatenate(values)


def package_file(package: str, *parts: str, install: str = "install vlmdata with all that it needs") -> Path:
    """The path of a file inside an installed package, without importing the package.

    Raises MachineError, saying what to `install`, when the package or the file is not there.
    """
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise MachineError(f"the package {package} is not installed: {install}")
    path = Path(spec.submodule_search_locations[0], *parts)
    if not path.is_file():
        raise MachineError(f"{path} is missing: install the package {package} again")
    return path


def onnx_session(model: str | bytes) -> Any:
    """An ONNX model (a path or its bytes) on the CPU. Several threads may run one session.

    It has one thread of its own: parts are spread over the cores.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.enable_cpu_mem_arena = False  # which would keep what the largest of many shapes took
    options.log_severity_level = 3  # what exporters left in a file is no news for a terminal
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def file_sha256(path: str | Path) -> str:
    """Hex sha256 of a file's bytes, read once in a process unless its size or time of change differs.

    Raises OSError.
    """
    path = Path(path).resolve()
    state = path.stat()
    return _file_sha256(path, state.st_size, state.st_mtime_ns)


def absolute_checkpoint(options: T) -> T:
    """A signal's options with the path of their `checkpoint` as a worker finds it from another working folder."""
    checkpoint = options.checkpoint  # type: ignore[attr-defined]  # of the two kinds that have one
    if checkpoint is None or "://" in checkpoint:
        return options
    return options.model_copy(update={"checkpoint": str(Path(checkpoint).resolve())})  # type: ignore[attr-defined]


@cache
def _file_sha256(path: Path, size: int, changed: int) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
