"""Stage 2 of the pocket model's training: text encoder and denoiser together, v-prediction on latents."""

from __future__ import annotations

import logging
import time

import numpy as np
import torch
from diffusers import LCMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from engine.training.pocket.auxiliary_heads import CaptionHead, PositionHeads
from engine.training.pocket.dataset import Batch, Lessons
from engine.training.pocket.text_encoder import MAX_LENGTH, WIDTH
from engine.training.precision import mixed

log = logging.getLogger(__name__)


def new_denoiser() -> UNet2DConditionModel:
    """An untrained denoiser: three levels, with attention on the way through the lowest; the pooled text reaches all of them."""
    return UNet2DConditionModel(
        sample_size=32,
        in_channels=8,
        out_channels=8,
        layers_per_block=1,
        block_out_channels=(32, 72, 144),
        down_block_types=("DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"),
        mid_block_type="UNetMidBlock2D",
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        cross_attention_dim=WIDTH,
        attention_head_dim=4,
        norm_num_groups=8,
        resnet_time_scale_shift="scale_shift",
        time_embedding_dim=192,
        addition_embed_type="text",
        addition_embed_type_num_heads=4,
    )


def new_scheduler() -> LCMScheduler:
    """The noise schedule the model is trained on, and the few-step sampler it is distilled for."""
    return LCMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction", steps_offset=1)


class Encoder:
    """Captions to embeddings (B, 32, 192), as the engine makes them: padded and truncated, last hidden state."""

    def __init__(self, tokenizer: CLIPTokenizer, model: CLIPTextModel) -> None:
        self.tokenizer, self.model = tokenizer, model

    def __call__(self, captions: list[str]) -> Tensor:
        tokens = self.tokenizer(
            captions, padding="max_length", truncation=True, max_length=MAX_LENGTH, return_tensors="pt"
        )
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


class Noising:
    """The tables of the noise schedule, √ᾱ and √(1−ᾱ) for each training timestep."""

    def __init__(self, device: str) -> None:
        alphas = new_scheduler().alphas_cumprod.to(device)
        self.root_a, self.root_b = alphas.sqrt(), (1 - alphas).sqrt()

    def at(self, table: Tensor, t: Tensor) -> Tensor:
        """The entries of ``table`` for timesteps (B,), (B, 1, 1, 1); below 0 the first."""
        return table[t.clamp(min=0)].view(-1, 1, 1, 1)

    def noised(self, z: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """√ᾱ·z + √(1−ᾱ)·noise."""
        return self.at(self.root_a, t) * z + self.at(self.root_b, t) * noise

    def velocity(self, x: Tensor, z: Tensor, t: Tensor) -> Tensor:
        """The v that leads from ``x`` at ``t`` to ``z``: (√ᾱ·x − z) / √(1−ᾱ)."""
        return (self.at(self.root_a, t) * x - z) / self.at(self.root_b, t)

    def weights(self, batch: Batch) -> Tensor:
        """How much each row counts, (B,): 1, and less for restyled rows of little noise, where v exaggerates what is repainted."""
        repainted = (self.root_b[batch.t].square() / 0.3).clamp(max=1.0)
        first = batch.free + batch.coupled
        return torch.cat([torch.ones_like(repainted[:first]), repainted[first:]])


def predicted(denoiser: UNet2DConditionModel, x: Tensor, t: Tensor, condition: Tensor) -> Tensor:
    """The denoiser's v for ``x`` (B, 8, h, w) at ``t`` (B,), float32 whatever it is computed in."""
    with mixed(str(x.device)):
        return denoiser(x.to(memory_format=torch.channels_last), t, condition).sample.float()


def train(
    denoiser: UNet2DConditionModel,
    encoder: Encoder,
    data: Lessons,
    minutes: float,
    seed: int,
    rows: tuple[int, int, int],
    peak: float = 1e-3,
    settle: float = 0.7,
    heads: float = 0.2,
) -> None:
    """Trains in place for ``minutes`` on batches of so many free, coupled and restyled rows; the modules end as their moving average.

    The learning rate falls from ``peak`` over the last ``settle`` of the time; ``heads`` weighs the heads of ``Places``.
    """
    device = str(denoiser.device)
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    noising, places, words = Noising(device), PositionHeads(denoiser).to(device), CaptionHead(denoiser).to(device)
    if device == "cpu":  # the plain products are faster to train through than the fused ones
        denoiser.set_attn_processor(AttnProcessor())
        encoder.model.set_attn_implementation("eager")
    modules: list[torch.nn.Module] = [denoiser, encoder.model]
    parameters = [p for m in modules for p in m.parameters()]
    optimiser = torch.optim.AdamW(
        [*parameters, *places.heads.parameters(), *words.head.parameters()],
        lr=peak,
        weight_decay=1e-3,
        betas=(0.9, 0.99),
        fused=True,
    )
    average = Average(modules, 0.998)
    start, step, shown = time.monotonic(), 0, np.zeros(6)
    while (done := (time.monotonic() - start) / (minutes * 60)) < 1:
        for group in optimiser.param_groups:
            group["lr"] = peak * min(1.0, (step + 1) / 200) * min(1.0, (1.0 - done) / settle + 0.02)
        batch = data.batch(rows, rng, device)
        x = noising.noised(batch.source, batch.noise, batch.t)
        with mixed(device):
            condition = encoder(batch.captions)
        v = predicted(denoiser, x, batch.t, condition)
        errors = (v - noising.velocity(x, batch.target, batch.t)).square().mean((1, 2, 3)) * noising.weights(batch)
        place, picture = places.losses(batch.target)
        named = words.loss(batch.looks, batch.captions)
        loss = errors.mean() + heads * (place + picture + named)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        average.update(step)
        shown += (np.array([*_by_kind(errors, batch), place.item(), picture.item(), named.item()]) - shown) * max(
            0.02, 1 / (step + 1)
        )
        if step % 100 == 0:
            log.info(
                "diffusion step %d, %.0f %%: free %.4f coupled %.4f restyled %.4f, heads %.4f %.4f %.4f",
                step,
                done * 100,
                *shown,
            )
        step += 1
    places.remove()
    words.remove()
    average.copy_back()


def _by_kind(errors: Tensor, batch: Batch) -> list[float]:
    parts = errors.detach().tensor_split([batch.free, batch.free + batch.coupled])
    return [part.mean().item() if len(part) else 0.0 for part in parts]
