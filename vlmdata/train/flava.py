"""FLAVA's model (Singh 2022, arXiv:2112.04482) from transformers, its tokenizer, and its losses over a mixed batch."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlmdata import towers
from vlmdata.errors import InputError, first_line
from vlmdata.recipe import MaskedJob
from vlmdata.train.masking import IGNORED

SIZES = {  # width, layers of each tower, layers over both, heads, deviation of random weights; base is the paper's
    # Narrow layers need larger ones: with 0.02 and transformers' zeros, matching stayed at chance at width 64.
    "tiny": (128, 3, 2, 4, 0.09),
    "small": (384, 6, 3, 6, 0.05),
    "base": (768, 12, 6, 12, 0.02),
}
LARGEST_SCALE = 4.6052  # of the contrastive logits, as a logarithm: 100


def tokenizer_of(job: MaskedJob) -> Any:
    """BERT's uncased WordPieces, or those of a folder or of the hub. Raises InputError for one without [MASK]."""
    from transformers import AutoTokenizer

    name = job.tokenizer or str(towers.weights()["minilm-l6-tokenizer"].parent)
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"tokenizer: {name} holds none: {first_line(error)}") from error
    if tokenizer.mask_token_id is None or tokenizer.pad_token_id is None:
        raise InputError(
            f"tokenizer: {name} has no mask or padding token; masked language modelling needs one of BERT's kind"
        )
    # Set once: the tokenizer is then only read, by several threads.
    tokenizer.backend_tokenizer.enable_truncation(job.tokens)
    tokenizer.backend_tokenizer.no_padding()
    return tokenizer


def pretraining(job: MaskedJob, words: int, codes: int) -> Any:
    """A FlavaForPreTraining whose heads predict `words` tokens and `codes` codes; random weights follow the job's seed.

    Raises InputError for what transformers makes no model of.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import FlavaConfig, FlavaForPreTraining

    config: Any
    text = {"vocab_size": words}
    image = {"vocab_size": codes, "image_size": job.image_size, "patch_size": job.patch_size}
    # Each head has a second bias, which no forward pass reads: tied to the first, a checkpoint would hold it twice.
    # The codebook is no part of the model: it would be random.
    apart = {"tie_word_embeddings": False, "init_codebook": False}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(
            job.seed
        )  # what is not trained is not in checkpoints either, and must come out the same again
        try:
            if isinstance(job.model, str) and job.model not in SIZES:
                config = FlavaConfig.from_pretrained(job.model)
                sizes = config.image_config.image_size, config.image_config.patch_size
                if sizes != (job.image_size, job.patch_size):
                    raise InputError(f"image_size, patch_size: {job.model} has {sizes[0]} and {sizes[1]}; set these")
                config.image_config.vocab_size, config.text_config.vocab_size = codes, words
                for key, value in apart.items():
                    setattr(config, key, value)
                return FlavaForPreTraining.from_pretrained(
                    job.model, config=config, use_safetensors=True, ignore_mismatched_sizes=True
                )
            given = _config(job) if isinstance(job.model, str) else job.model
            parts = {name: given.get(name) or {} for name in ("text_config", "image_config")}
            config = FlavaConfig(
                **given
                | {"text_config": parts["text_config"] | text, "image_config": parts["image_config"] | image}
                | apart
            )
            return _begun(FlavaForPreTraining(config))
        except (OSError, ValueError, TypeError, AttributeError, RuntimeError, StrictDataclassError) as error:
            raise InputError(f"model: transformers makes no FLAVA of it: {first_line(error)}") from error


def _begun(net: Any) -> Any:
    """Random [CLS], [MASK] and places of patches where transformers begins with zeros. The norm of a vector of zeros
    (with an epsilon of 1e-12) made the first gradients 400 000 long, and clipping them left nothing of the others."""
    image, joint = net.flava.image_model.embeddings, net.flava.multimodal_model
    for parameter in (image.cls_token, image.position_embeddings, image.mask_token, getattr(joint, "cls_token", None)):
        if parameter is not None:
            nn.init.normal_(parameter, std=net.config.initializer_range)
    return net


def _config(job: MaskedJob) -> dict[str, Any]:
    width, layers, joint, heads, deviation = SIZES[str(job.model)]
    tower = {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_attention_heads": heads,
        "hidden_dropout_prob": job.dropout,
        "attention_probs_dropout_prob": job.dropout,
        "initializer_range": deviation,
    }
    return {
        "hidden_size": width,
        "projection_dim": width,
        "initializer_range": deviation,
        "text_config": tower | {"num_hidden_layers": layers},
        "image_config": tower | {"num_hidden_layers": layers},
        "multimodal_config": tower | {"num_hidden_layers": joint},
    }


class Flava(nn.Module):
    """All losses of a mixed batch in one forward pass, each the mean of its terms.

    It calls the parts of FlavaForPreTraining, and not its forward once for each kind of samples, which would read
    images and texts alone a second time without masks, change the labels and the scale in place, know codes alone as
    targets, and give NaN where a kind is not there. The losses are equal to its own (tests/test_train_masked.py).
    """

    net: Any

    def __init__(self, net: Any, losses: set[str], padding: int, pixels: bool, centres: tuple[int, int] | None) -> None:
        from transformers.models.flava.image_processing_flava import FLAVA_IMAGE_MEAN, FLAVA_IMAGE_STD

        super().__init__()
        self.net, self.losses, self.padding, self.pixels = net, losses, padding, pixels
        self.register_buffer("mean", torch.tensor(FLAVA_IMAGE_MEAN).view(3, 1, 1) * 255, persistent=False)
        self.register_buffer("deviation", torch.tensor(FLAVA_IMAGE_STD).view(3, 1, 1) * 255, persistent=False)
        if centres:  # of learned codes; here, because every checkpoint needs them
            self.register_buffer("centres", torch.zeros(centres))
        self.patch, self.side = int(net.config.image_config.patch_size), int(net.config.image_config.image_size)
        self.grid = self.side // self.patch
        self._lock_unreached()

    def _lock_unreached(self) -> None:
        """Lock what no loss in force reaches, such as the towers' poolers: several processes wait for the gradient of
        every parameter that is trained."""
        image, text = torch.zeros(1, self.side, self.side, 3), torch.ones(1, 3, dtype=torch.int64)
        hidden = torch.ones(1, self.grid**2, dtype=torch.bool)
        made_up = {"image": image, "hidden": hidden, "text": text, "text_labels": text}
        made_up |= {f"pair_{name}": value for name, value in made_up.items()} | {"pair_masked": text}
        made_up |= {"codes": hidden.long(), "pair_codes": hidden.long(), "match": torch.ones(1, dtype=torch.int64)}
        parameters = list(self.parameters())
        total = torch.stack(list(self.eval()(made_up).values())).sum()
        found = torch.autograd.grad(total, parameters, allow_unused=True)
        for parameter, gradient in zip(parameters, found, strict=True):
            parameter.requires_grad_(gradient is not None)
        self.train()

    def normalised(self, image: Tensor) -> Tensor:
        """uint8 RGB [b, side, side, 3] as float32 [b, 3, side, side]."""
        return (image.permute(0, 3, 1, 2) - self.get_buffer("mean")) / self.get_buffer("deviation")

    def text_states(self, ids: Tensor) -> Tensor:
        """A text alone: [b, tokens, width]."""
        return self.net.flava.text_model(ids, attention_mask=self._attended(ids)).last_hidden_state

    def patch_states(self, image: Tensor, hidden: Tensor | None = None) -> Tensor:
        """A picture alone, uint8 [b, side, side, 3], without the patches that are hidden: [b, patches, width]."""
        return self.net.flava.image_model(self.normalised(image), bool_masked_pos=hidden).last_hidden_state[:, 1:]

    def joint_states(self, image: Tensor, ids: Tensor, hidden: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """A picture and a text together: all states, those of the patches, those of the tokens."""
        states = self.net.flava(
            input_ids=ids,
            pixel_values=self.normalised(image),
            attention_mask=self._attended(ids),
            bool_masked_pos=hidden,
        ).multimodal_embeddings
        first = states.shape[1] - ids.shape[1]  # in front of the patches stand [CLS] of both and of the image
        return states, states[:, 2:first], states[:, first:]

    def vectors(self, image: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Unit vectors of pictures and texts by the contrastive heads, [b, projection_dim] each."""
        return self.encode_image(image), self.encode_text(ids)

    def encode_image(self, image: Tensor) -> Tensor:
        model = self.net.flava
        states = model.image_model(self.normalised(image)).last_hidden_state[:, 0]
        return F.normalize(model.image_projection(states), dim=-1)

    def encode_text(self, ids: Tensor) -> Tensor:
        return F.normalize(self.net.flava.text_projection(self.text_states(ids)[:, 0]), dim=-1)

    def _attended(self, ids: Tensor) -> Tensor:
        return (ids != self.padding).long()

    def targets(self, image: Tensor) -> Tensor:
        """A picture's patches, each to mean 0 and deviation 1 (MAE, He 2021, arXiv:2111.06377): [b, patches, 3 p p]."""
        patches = F.unfold(self.normalised(image), self.patch, stride=self.patch).transpose(1, 2)
        return (patches - patches.mean(-1, keepdim=True)) / (patches.var(-1, keepdim=True) + 1e-6).sqrt()

    def _of_patches(self, head: nn.Module, states: Tensor, counted: Tensor, image: Tensor, codes: Tensor) -> Tensor:
        if self.pixels:
            return F.mse_loss(head(states[counted]).float(), self.targets(image)[counted])
        return F.cross_entropy(head(states[counted]), codes[counted])

    def _contrastive(self, batch: dict[str, Tensor], matched: Tensor) -> Tensor:
        image, text = self.vectors(batch["pair_image"], batch["pair_text"])
        scale = self.net.flava.logit_scale.clamp(0, LARGEST_SCALE)
        if self.training:
            # All ranks' vectors, gathered with their gradients (global_backprop_contrastive).
            by_image, by_text, own = self.net.global_contrastive_head(image, text, scale)
        else:  # one process alone measures: no other would answer
            by_image = image @ text.T * scale.exp()
            by_text, own = by_image.T, torch.arange(len(image), device=image.device)
        return (F.cross_entropy(by_image[matched], own[matched]) + F.cross_entropy(by_text[matched], own[matched])) / 2

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The losses in force, by name, of a batch as `vlmdata.train.mixture.Mixed` makes it."""
        net, found = self.net, dict[str, Tensor]()
        if "mlm" in self.losses:
            chosen = batch["text_labels"] != IGNORED
            found["mlm"] = F.cross_entropy(
                net.mlm_head(self.text_states(batch["text"])[chosen]), batch["text_labels"][chosen]
            )
        if "mim" in self.losses:
            image, hidden = batch["image"], batch["hidden"]
            found["mim"] = self._of_patches(
                net.mim_head, self.patch_states(image, hidden), hidden, image, batch["codes"]
            )
        matched = batch["match"].bool() if "match" in batch else torch.zeros(0, dtype=torch.bool)
        if self.losses & {"itm", "mmm_text", "mmm_image"}:
            image, hidden = batch["pair_image"], batch["pair_hidden"]
            states, patches, tokens = self.joint_states(image, batch["pair_masked"], hidden)
            if "itm" in self.losses:
                found["itm"] = F.cross_entropy(net.itm_head(states), batch["match"])
            if "mmm_text" in self.losses:
                labels = batch["pair_text_labels"]
                chosen = (labels != IGNORED) & matched[:, None]
                found["mmm_text"] = F.cross_entropy(net.mmm_text_head(tokens[chosen]), labels[chosen])
            if "mmm_image" in self.losses:
                counted = hidden & matched[:, None]
                found["mmm_image"] = self._of_patches(net.mmm_image_head, patches, counted, image, batch["pair_codes"])
        if "contrastive" in self.losses:
            found["contrastive"] = self._contrastive(batch, matched)
        return found
