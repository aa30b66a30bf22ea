"""The causal language model of a LLaVA: the embedded SmolLM2-135M-Instruct, or any of transformers; LoRA in it."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from vlmdata.errors import InputError, first_line
from vlmdata.recipe import Lora
from vlmdata.signals.fluency import smollm2

IMAGE = "<image>"  # the token that stands where the picture's are put in
# LLaVA's own form (vicuna_v1), for a language model that has no chat template.
_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'user' %}USER: {{ message['content'] }} {% else %}"
    "ASSISTANT: {{ message['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT: {% endif %}"
)


@contextmanager
def quiet() -> Iterator[None]:
    """transformers draws bars and tables on the terminal as it loads and saves, such as of a second tower's weights."""
    from transformers.utils import logging

    level, shown = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if shown:
            logging.enable_progress_bar()


def load(name: str) -> tuple[Any, Any]:
    """A causal language model, fp32, and its tokenizer, both with a token for the picture and with a chat template.

    name: `smollm2`, a folder, or a model of the hub; weights as safetensors alone, no code of the model's own.
    Raises InputError for one that cannot be had, MachineError where the embedded one's package is missing.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    place = str(smollm2()) if name == "smollm2" else name
    try:
        tokenizer = AutoTokenizer.from_pretrained(place)
        with quiet():
            model: Any = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32, use_safetensors=True)
    # transformers and the hub's client raise many kinds; every one means that this model cannot be had
    except Exception as error:
        raise InputError(
            f"language_model: {name} cannot be loaded: {first_line(error)}. Give a folder with config.json, "
            "tokenizer.json and safetensors, the name of a causal language model of the hub, or `smollm2`"
        ) from error
    if not tokenizer.is_fast or tokenizer.eos_token_id is None:
        raise InputError(f"language_model: the tokenizer of {name} has no tokenizer.json, or no token that ends a text")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.chat_template = tokenizer.chat_template or _TEMPLATE
    tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE]}, replace_extra_special_tokens=False)
    rows: int = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > rows:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        with torch.no_grad():  # rows that nothing reads and nothing should choose
            model.get_input_embeddings().weight[rows:] = 0
            model.get_output_embeddings().weight[rows:] = 0
    model.generation_config.suppress_tokens = [tokenizer.convert_tokens_to_ids(IMAGE)]
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    return model, tokenizer


def add_lora(model: Any, options: Lora) -> None:
    """Put adapters beside every linear layer, in place; they alone are trained."""
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(
        r=options.rank,
        lora_alpha=options.alpha,
        lora_dropout=options.dropout,
        target_modules=sorted(name for name, module in model.named_modules() if isinstance(module, nn.Linear)),
    )
    inject_adapter_in_model(config, model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad = "lora_" in name


def without_lora(model: Any) -> Any:
    """The model with its adapters' products added to the layers that they stood beside: a copy, if it has any."""
    from peft.tuners.lora import LoraLayer

    if not any(isinstance(module, LoraLayer) for module in model.modules()):
        return model
    plain = copy.deepcopy(model)
    for name, module in list(plain.named_modules()):
        if isinstance(module, LoraLayer):
            module.merge()
            plain.set_submodule(name, module.get_base_layer())
    return plain
