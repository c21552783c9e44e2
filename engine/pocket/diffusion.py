"""Stage 2 of the pocket model's training: text encoder and denoiser together, v-prediction on latents."""

from __future__ import annotations

import logging
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from diffusers import AutoencoderTiny, DDPMScheduler, LCMScheduler, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from engine.pocket.captions import Look, caption
from engine.pocket.coupling import FLOOR, VARIANTS, coupled_noise, variant_rng
from engine.pocket.data import draw, look
from engine.pocket.text import MAX_LENGTH, WIDTH

log = logging.getLogger(__name__)


def new_denoiser() -> UNet2DConditionModel:
    """An untrained denoiser: three levels, text enters at the lower two."""
    return UNet2DConditionModel(
        sample_size=32,
        in_channels=8,
        out_channels=8,
        layers_per_block=1,
        block_out_channels=(48, 96, 144),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=WIDTH,
        attention_head_dim=4,
        norm_num_groups=16,
    )


def new_scheduler() -> LCMScheduler:
    """The noise schedule the model is trained on, and the few-step sampler it is distilled for."""
    return LCMScheduler(beta_start=0.00085, beta_end=0.02, beta_schedule="scaled_linear", prediction_type="v_prediction", steps_offset=1)


@dataclass
class LatentSet:
    """Drawn looks and the latents of their pictures, (count, 8, size/8, size/8) float16."""

    looks: list[Look]
    latents: Tensor
    variants: Tensor | None = None

    def batch(self, size: int, rng: np.random.Generator, device: str) -> Batch:
        """Random latents with a fresh caption for each, and noise: coupled where the pictures are variants."""
        picks = rng.integers(len(self.looks), size=size)
        captions = [caption(self.looks[i], rng, drop=0.1 if self.variants is None else 0.04) for i in picks]
        z = self.latents[torch.from_numpy(picks)].to(device).float()
        noise = torch.randn_like(z)
        if self.variants is not None:
            noise = coupled_noise(noise, self.variants[torch.from_numpy(picks)].to(device))
        return Batch(z, noise, captions)


@dataclass
class Batch:
    """Latents and noise (B, 8, h, w) float32, and captions."""

    z: Tensor
    noise: Tensor
    captions: list[str]


def _draw_many(seed: int, count: int, size: int, coupled: bool) -> tuple[list[Look], np.ndarray, np.ndarray]:
    looks, pictures, variants = [], np.empty((count, size, size, 3), np.uint8), np.zeros(count, np.int64)
    for i in range(count):
        rng = np.random.default_rng((seed, i))
        chosen = look(rng)
        if coupled:
            chosen = Look(chosen.family, tuple(sorted(chosen.colours)), chosen.mood)
            variants[i] = rng.integers(VARIANTS)
            rng = variant_rng(chosen, int(variants[i]))
        looks.append(chosen)
        pictures[i] = np.round(draw(chosen, rng, size) * 255)
    return looks, pictures, variants


@torch.inference_mode()
def latent_set(autoencoder: AutoencoderTiny, seed: int, count: int, size: int, device: str, coupled: bool = False) -> LatentSet:
    """Draws ``count`` pictures of size², any or (coupled) the families' variants, and encodes them."""
    looks: list[Look] = []
    latents: list[Tensor] = []
    variants: list[np.ndarray] = []
    chunk = 500
    jobs = [(seed * 10_000 + j, chunk, size, coupled) for j in range(0, count, chunk)]
    with ProcessPoolExecutor(2) as pool:
        for part, pictures, numbers in pool.map(_draw_many, *zip(*jobs, strict=True)):
            looks += part
            variants.append(numbers)
            for k in range(0, chunk, 50):
                x = torch.from_numpy(pictures[k : k + 50]).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1
                with torch.autocast(torch.device(device).type, torch.bfloat16):
                    latents.append(autoencoder.encoder(x).half().cpu())
    log.info("drew and encoded %d pictures of %d²", len(looks), size)
    return LatentSet(looks, torch.cat(latents), torch.from_numpy(np.concatenate(variants)) if coupled else None)


class Encoder:
    """Captions to embeddings (B, 32, 192), as the engine makes them: padded and truncated, last hidden state."""

    def __init__(self, tokenizer: CLIPTokenizer, model: CLIPTextModel) -> None:
        self.tokenizer, self.model = tokenizer, model

    def __call__(self, captions: list[str]) -> Tensor:
        tokens = self.tokenizer(captions, padding="max_length", truncation=True, max_length=MAX_LENGTH, return_tensors="pt")
        return self.model(tokens.input_ids.to(self.model.device)).last_hidden_state


class Average:
    """Exponential moving average of several modules' parameters."""

    def __init__(self, modules: list[torch.nn.Module], decay: float) -> None:
        self.decay, self.live = decay, [p for m in modules for p in m.parameters()]
        self.kept = [p.detach().clone() for p in self.live]

    @torch.no_grad()
    def update(self, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.kept, [p.detach() for p in self.live], 1 - decay)

    @torch.no_grad()
    def copy_back(self) -> None:
        for live, kept in zip(self.live, self.kept, strict=True):
            live.copy_(kept)


def train(
    denoiser: UNet2DConditionModel,
    encoder: Encoder,
    anything: LatentSet,
    coupled: LatentSet,
    minutes: float,
    seed: int,
    batch: int,
    peak: float = 6e-4,
) -> None:
    """Trains in place for ``minutes``; the modules end as the moving average of their weights.

    Half of each batch are pictures of any kind below ``FLOOR``, half are coupled ones above it.
    """
    device = str(denoiser.device)
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    noising = DDPMScheduler.from_config(new_scheduler().config)
    modules: list[torch.nn.Module] = [denoiser, encoder.model]
    parameters = [p for m in modules for p in m.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=peak, weight_decay=1e-3, betas=(0.9, 0.99), fused=True)
    average = Average(modules, 0.998)
    start, step = time.monotonic(), 0
    shown = np.zeros(2)
    half = batch // 2
    while (done := (time.monotonic() - start) / (minutes * 60)) < 1:
        for group in optimiser.param_groups:
            group["lr"] = peak * min(1.0, (step + 1) / 100) * min(1.0, (1.0 - done) / 0.6 + 0.02)
        one, two = anything.batch(batch - half, rng, device), coupled.batch(half, rng, device)
        low = torch.randint(0, FLOOR, (batch - half,), device=device)
        high = torch.randint(FLOOR, 1000, (half,), device=device)
        high[::2] = 999
        z, noise, t = torch.cat([one.z, two.z]), torch.cat([one.noise, two.noise]), torch.cat([low, high])
        x = noising.add_noise(z, noise, t).to(memory_format=torch.channels_last)
        target = noising.get_velocity(z, noise, t)
        with torch.autocast(torch.device(device).type, torch.bfloat16):
            v = denoiser(x, t, encoder(one.captions + two.captions)).sample
        losses = (v.float() - target).square().mean((1, 2, 3))
        optimiser.zero_grad(set_to_none=True)
        losses.mean().backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        average.update(step)
        now = np.array([losses[: batch - half].mean().item(), losses[batch - half :].mean().item()])
        shown = 0.97 * shown + 0.03 * now if step else now
        if step % 100 == 0:
            log.info("diffusion step %d, %.0f %%, loss %.4f, coupled %.4f", step, done * 100, *shown)
        step += 1
    average.copy_back()
