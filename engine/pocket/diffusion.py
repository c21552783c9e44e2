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
from torch.nn import functional as F
from transformers import CLIPTextModel, CLIPTokenizer

from engine.pocket.captions import Look, caption
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

    def batch(self, size: int, rng: np.random.Generator, device: str) -> tuple[Tensor, list[str]]:
        """Random latents (size, 8, h, w) float32 and a fresh caption for each."""
        picks = rng.integers(len(self.looks), size=size)
        captions = [caption(self.looks[i], rng) for i in picks]
        return self.latents[torch.from_numpy(picks)].to(device).float(), captions


def _draw_many(seed: int, count: int, size: int) -> tuple[list[Look], np.ndarray]:
    looks, pictures = [], np.empty((count, size, size, 3), np.uint8)
    for i in range(count):
        rng = np.random.default_rng((seed, i))
        looks.append(look(rng))
        pictures[i] = np.round(draw(looks[-1], rng, size) * 255)
    return looks, pictures


@torch.inference_mode()
def latent_set(autoencoder: AutoencoderTiny, seed: int, count: int, size: int, device: str, chunk: int = 500) -> LatentSet:
    """Draws ``count`` pictures of size² and encodes them."""
    looks: list[Look] = []
    latents: list[Tensor] = []
    jobs = range(0, count, chunk)
    with ProcessPoolExecutor(2) as pool:
        for part, pictures in pool.map(_draw_many, [seed * 10_000 + j for j in jobs], [chunk] * len(jobs), [size] * len(jobs)):
            looks += part
            for k in range(0, chunk, 50):
                x = torch.from_numpy(pictures[k : k + 50]).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1
                with torch.autocast(torch.device(device).type, torch.bfloat16):
                    latents.append(autoencoder.encoder(x).half().cpu())
    log.info("drew and encoded %d pictures of %d²", len(looks), size)
    return LatentSet(looks, torch.cat(latents))


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
    denoiser: UNet2DConditionModel, encoder: Encoder, data: LatentSet, minutes: float, seed: int, batch: int, peak: float = 6e-4
) -> None:
    """Trains in place for ``minutes``; the modules end as the moving average of their weights."""
    device = str(denoiser.device)
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    noising = DDPMScheduler.from_config(new_scheduler().config)
    modules: list[torch.nn.Module] = [denoiser, encoder.model]
    parameters = [p for m in modules for p in m.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=peak, weight_decay=1e-3, betas=(0.9, 0.99), fused=True)
    average = Average(modules, 0.999)
    start, step, shown = time.monotonic(), 0, 0.0
    while (done := (time.monotonic() - start) / (minutes * 60)) < 1:
        for group in optimiser.param_groups:
            group["lr"] = peak * min(1.0, (step + 1) / 200) * min(1.0, (1.0 - done) / 0.5 + 0.02)
        z, captions = data.batch(batch, rng, device)
        t = torch.randint(0, 1000, (batch,), device=device)
        noise = torch.randn_like(z)
        x = noising.add_noise(z, noise, t).to(memory_format=torch.channels_last)
        target = noising.get_velocity(z, noise, t)
        with torch.autocast(torch.device(device).type, torch.bfloat16):
            v = denoiser(x, t, encoder(captions)).sample
        loss = F.mse_loss(v.float(), target)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        average.update(step)
        shown = 0.98 * shown + 0.02 * loss.item() if step else loss.item()
        if step % 100 == 0:
            log.info("diffusion step %d, %.0f %%, loss %.4f", step, done * 100, shown)
        step += 1
    average.copy_back()
