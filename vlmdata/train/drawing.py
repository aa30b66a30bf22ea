"""The drawing objective: pictures from text, by flow matching (Lipman 2023, arXiv:2210.02747; Esser 2024,
arXiv:2403.03206) in pixels, or in the latents of a VAE; transformer and scheduler from diffusers.

A picture x and noise e meet at x_t = (1 - t) x + t e; the transformer is asked for e - x. The text's features come from
a frozen language model, once for each caption.
"""

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlmdata.errors import InputError, first_line
from vlmdata.recipe import DrawingJob
from vlmdata.train import data, order
from vlmdata.train.captions import Captions, Encoder

TIMES = 1000  # diffusers' timesteps for t from 0 to 1
MEASURED = (0.1, 0.3, 0.5, 0.7, 0.9)  # the times at which the loss is measured


def build(job: DrawingJob) -> "Drawing":
    """The objective. Raises InputError for a language model or a VAE that cannot be had."""
    return Drawing(job)


class Drawing:
    """See `vlmdata.train.loop.Objective`."""

    def __init__(self, job: DrawingJob) -> None:
        from diffusers import SD3Transformer2DModel

        self.job = job
        self.encoder = Encoder(job.language_model, job.words)
        self.vae = _vae(job.vae) if job.vae else None
        scale = 2 ** (len(self.vae.config.block_out_channels) - 1) if self.vae else 1
        if job.size % (scale * job.patch):
            raise InputError(f"size: {job.size} is no multiple of the VAE's {scale} times `patch` {job.patch}")
        self.side = job.size // scale
        channels = self.vae.config.latent_channels if self.vae else 3
        width = job.heads * job.head_width
        transformer = SD3Transformer2DModel(
            sample_size=self.side,
            patch_size=job.patch,
            in_channels=channels,
            out_channels=channels,
            num_layers=job.layers,
            num_attention_heads=job.heads,
            attention_head_dim=job.head_width,
            caption_projection_dim=width,
            joint_attention_dim=self.encoder.width,
            pooled_projection_dim=self.encoder.width,
            pos_embed_max_size=self.side // job.patch,
            qk_norm="rms_norm",
        )
        self.model = _Flow(transformer, self.vae)
        self.shape = (channels, self.side, self.side)
        self.weights = {"drawing": 1.0}

    def terms(self, batch: dict[str, Tensor]) -> dict[str, float]:
        return {"drawing": float(len(batch["image"]))}

    def samples(self, shards: data.Index, out: Path) -> "Pictures":
        return Pictures(shards, self.job, self.encoder.cached(shards, out / "features"), self.shape)

    @torch.inference_mode()
    def evaluate(self, samples: "Pictures", batch: int) -> dict[str, float]:
        """drawing/loss: mean squared error of the velocity at five times, noise fixed by the place; beside it what
        `zero`, a model that says nothing, has, and `shuffled`: the loss with another sample's caption."""
        whole, device = samples.whole, next(self.model.parameters()).device
        n = len(whole)
        sums = dict.fromkeys(("loss", "loss/zero", "loss/shuffled"), 0.0)
        others = whole[order.derangement(n, self.job.seed)]
        seeds = order.seeds(0, 0, range(len(samples.uids)))
        for start in range(0, n, batch):
            places = whole[start : start + batch]
            rows = samples.batch(places, seeds[places], plain=True)
            rows = {name: value.to(device) for name, value in rows.items()}
            other = {name: value.to(device) for name, value in samples.text(others[start : start + batch]).items()}
            for time in MEASURED:
                rows["time"] = torch.full((len(places),), time, device=device)
                right, target = self.model.velocity(rows)
                wrong, _ = self.model.velocity(rows | other)
                for name, said in (("loss", right), ("loss/zero", torch.zeros_like(right)), ("loss/shuffled", wrong)):
                    sums[name] += float(F.mse_loss(said, target)) * len(places)
        return {f"drawing/{name}": value / n / len(MEASURED) for name, value in sums.items()} | {"drawing/n": float(n)}

    @torch.inference_mode()
    def draw(self, prompts: list[str], seed: int = 0, steps: int = 30, guidance: float = 3.0) -> np.ndarray:
        """Pictures of some texts: uint8 RGB [n, size, size, 3].

        steps: of Euler's method from noise to picture. guidance: the velocity goes so far from that without a text to
        that with it (classifier-free guidance, Ho 2022, arXiv:2207.12598); 1 is the latter.
        """
        from diffusers import FlowMatchEulerDiscreteScheduler

        self.model.eval()
        device = next(self.model.parameters()).device
        drawn = torch.stack([_noise(each, self.shape) for each in order.seeds(seed, 0, range(len(prompts)))]).to(device)
        features, blank = (self.encoder.encode(texts) for texts in (prompts, [""] * len(prompts)))
        text = torch.from_numpy(np.concatenate([features, blank])).to(device)
        scheduler: Any = FlowMatchEulerDiscreteScheduler(num_train_timesteps=TIMES)
        scheduler.set_timesteps(steps, device=device)
        for time in scheduler.timesteps:
            times = torch.full((2 * len(prompts),), float(time) / TIMES, device=device)
            with_text, without = self.model.said(torch.cat([drawn, drawn]), text, times).chunk(2)
            drawn = scheduler.step(without + guidance * (with_text - without), time, drawn).prev_sample
        pixels = self.model.decode(drawn).float().clamp(-1, 1).cpu()
        return ((pixels + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()

    def export(self, folder: Path) -> None:
        """As diffusers' folders `transformer` (SD3Transformer2DModel.from_pretrained loads it) and `scheduler`."""
        from diffusers import FlowMatchEulerDiscreteScheduler

        self.model.transformer.save_pretrained(folder / "transformer")
        scheduler: Any = FlowMatchEulerDiscreteScheduler(num_train_timesteps=TIMES)
        scheduler.save_pretrained(folder / "scheduler")


class Pictures:
    """Small pictures, their captions' features, noise and times; see `vlmdata.train.loop.Samples`."""

    def __init__(self, shards: data.Index, job: DrawingJob, captions: Captions, shape: tuple[int, int, int]) -> None:
        self.shards, self.uids, self.job, self.captions, self.shape = shards, shards.uids, job, captions, shape
        self.first, self.broken = np.arange(len(shards)), set[str]()

    @cached_property
    def whole(self) -> np.ndarray:
        """The places of what can be decoded, int64; see `data.whole`."""
        return data.whole(self.shards, round(1.5 * self.job.size), self.broken)

    def batch(self, places: np.ndarray, seeds: np.ndarray | None, plain: bool = False) -> dict[str, Tensor]:
        """image: float32 [b, 3, size, size], -1 to 1; text: float32 [b, words, width]; noise: float32 [b, c, s, s];
        time: float32 [b], by a logit-normal (Esser 2024). plain: every picture has its caption."""
        seeds = order.seeds(0, 0, range(len(places))) if seeds is None else seeds
        draws = order.uniform(seeds, 4)
        images, captioned = [], []
        for place in places:
            chosen, picture = data.decodable(self.shards, int(place), round(1.5 * self.job.size), self.broken)
            images.append(data.square(picture, self.job.size))
            captioned.append(chosen)
        text = self.text(np.array(captioned))["text"]
        if not plain:
            text[torch.from_numpy(draws[:, 0] < self.job.unconditional)] = torch.from_numpy(self.captions.blank)
        normal = np.sqrt(-2 * np.log(1 - draws[:, 1])) * np.cos(2 * np.pi * draws[:, 2])  # Box and Muller 1958
        return {
            "image": torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 127.5 - 1,
            "text": text,
            "noise": torch.stack([_noise(seed, self.shape) for seed in seeds]),
            "time": torch.from_numpy(1 / (1 + np.exp(-normal))).float(),
        }

    def text(self, places: np.ndarray) -> dict[str, Tensor]:
        return {"text": torch.from_numpy(self.captions.features[self.captions.which[places]].astype(np.float32))}


class _Flow(nn.Module):
    """From a batch to the loss, through the VAE where there is one."""

    def __init__(self, transformer: Any, vae: Any) -> None:
        super().__init__()
        self.transformer, self.vae = transformer, vae

    def train(self, mode: bool = True) -> "_Flow":
        super().train(mode)
        if self.vae:
            self.vae.eval()
        return self

    def said(self, noisy: Tensor, text: Tensor, time: Tensor) -> Tensor:
        """The velocity that the transformer says; the text's mean tells it what the whole is about."""
        return self.transformer(noisy, text, text.mean(1), time * TIMES, return_dict=False)[0]

    def velocity(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The velocity that is said and the right one, float32 [b, c, s, s]."""
        x, noise, time = self.encode(batch["image"]), batch["noise"], batch["time"][:, None, None, None]
        said = self.said((1 - time) * x + time * noise, batch["text"], batch["time"])
        return said.float(), noise - x

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"drawing": F.mse_loss(*self.velocity(batch))}

    def encode(self, image: Tensor) -> Tensor:
        if self.vae is None:
            return image
        with torch.no_grad():
            latents = self.vae.encode(image).latent_dist.mode()
        return (latents - (self.vae.config.shift_factor or 0)) * self.vae.config.scaling_factor

    def decode(self, drawn: Tensor) -> Tensor:
        if self.vae is None:
            return drawn
        return self.vae.decode(drawn / self.vae.config.scaling_factor + (self.vae.config.shift_factor or 0)).sample


def _noise(seed: np.uint64, shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(int(seed) >> 1))


def _vae(name: str) -> Any:
    from diffusers import AutoencoderKL

    try:
        return AutoencoderKL.from_pretrained(name, use_safetensors=True).eval().requires_grad_(False)
    # diffusers and the hub's client raise many kinds; every one means that this VAE cannot be had
    except Exception as error:
        raise InputError(
            f"vae: {name} cannot be loaded: {first_line(error)}. Give a folder with an AutoencoderKL"
        ) from error
