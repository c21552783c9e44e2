"""Stage 2 of the pocket model's training: text encoder and denoiser together, v-prediction on latents."""

from __future__ import annotations

import numpy as np
import torch
from diffusers import LCMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer
from transformers.modeling_outputs import BaseModelOutputWithPooling

from engine.training.loop import ExponentialMovingAverage, Limit, LinearDecay, TrainingLoop, warmed_up_decay
from engine.training.pocket.auxiliary_heads import CaptionHead, PositionHeads
from engine.training.pocket.dataset import ROW_TYPES, Batch, LatentDataset
from engine.training.pocket.text_encoder import EMBEDDING_WIDTH, MAX_TOKENS
from engine.training.precision import autocast

EMA_DECAY = 0.998


def new_denoiser() -> UNet2DConditionModel:
    """Return an untrained denoiser: three levels, attention in the lowest one's blocks, pooled text in all."""
    return UNet2DConditionModel(
        sample_size=32,
        in_channels=8,
        out_channels=8,
        layers_per_block=1,
        block_out_channels=(32, 72, 144),
        down_block_types=("DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"),
        mid_block_type="UNetMidBlock2D",
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        cross_attention_dim=EMBEDDING_WIDTH,
        attention_head_dim=4,
        norm_num_groups=8,
        resnet_time_scale_shift="scale_shift",
        time_embedding_dim=192,
        addition_embed_type="text",
        addition_embed_type_num_heads=4,
    )


def new_scheduler() -> LCMScheduler:
    """Return the noise schedule of the training, and the few-step sampler of the distilled model."""
    return LCMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction", steps_offset=1)


class CaptionEncoder:
    """Captions to embeddings (B, 32, 192), as the engine computes them: padded and truncated, last hidden state."""

    def __init__(self, tokenizer: CLIPTokenizer, model: CLIPTextModel) -> None:
        self.tokenizer, self.model = tokenizer, model

    def __call__(self, captions: list[str]) -> Tensor:
        return self.encode(captions).last_hidden_state

    def encode(self, captions: list[str]) -> BaseModelOutputWithPooling:
        """Return the whole output of the text encoder."""
        tokens = self.tokenizer(
            captions, padding="max_length", truncation=True, max_length=MAX_TOKENS, return_tensors="pt"
        )
        return self.model(tokens.input_ids.to(self.model.device))


class NoiseTables:
    """Tables of the training's noise schedule: √ᾱ and √(1−ᾱ) for each training timestep."""

    def __init__(self, device: str) -> None:
        alphas = new_scheduler().alphas_cumprod.to(device)
        self.root_a, self.root_b = alphas.sqrt(), (1 - alphas).sqrt()

    def lookup(self, table: Tensor, t: Tensor) -> Tensor:
        """Return the entries of ``table`` for timesteps ``t`` (B,) as (B, 1, 1, 1); the first one below 0."""
        return table[t.clamp(min=0)].view(-1, 1, 1, 1)

    def add_noise(self, z: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Return √ᾱ·z + √(1−ᾱ)·noise."""
        return self.lookup(self.root_a, t) * z + self.lookup(self.root_b, t) * noise

    def velocity(self, x: Tensor, z: Tensor, t: Tensor) -> Tensor:
        """Return the v that leads from ``x`` at ``t`` to ``z``: (√ᾱ·x − z) / √(1−ᾱ)."""
        return (self.lookup(self.root_a, t) * x - z) / self.lookup(self.root_b, t)

    def row_weights(self, batch: Batch) -> Tensor:
        """Return the weight of each row's error, (B,): 1, and less for restyled rows with little noise.

        There v amplifies the difference between source and target.
        """
        restyled = (self.root_b[batch.t].square() / 0.3).clamp(max=1.0)
        first = batch.free + batch.coupled
        return torch.cat([torch.ones_like(restyled[:first]), restyled[first:]])


def predict_velocity(denoiser: UNet2DConditionModel, x: Tensor, t: Tensor, condition: Tensor) -> Tensor:
    """Return the denoiser's v for ``x`` (B, 8, h, w) at ``t`` (B,) in float32, computed in mixed precision."""
    with autocast(str(x.device)):
        return denoiser(x.to(memory_format=torch.channels_last), t, condition).sample.float()


def train(
    denoiser: UNet2DConditionModel,
    encoder: CaptionEncoder,
    data: LatentDataset,
    limit: Limit,
    seed: int,
    rows: tuple[int, int, int],
    peak: float = 1e-3,
    decay_share: float = 0.7,
    head_weight: float = 0.2,
) -> None:
    """Train in place until ``limit`` on batches of ``rows`` free, coupled and restyled rows.

    Both modules end as their moving average. The learning rate falls from ``peak`` over the last ``decay_share`` of the
    training. ``head_weight`` weighs the losses of the auxiliary heads.
    """
    device = str(denoiser.device)
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    tables = NoiseTables(device)
    position_heads, caption_head = PositionHeads(denoiser).to(device), caption_head_of(denoiser).to(device)
    if device == "cpu":  # unfused attention trains faster on a CPU
        denoiser.set_attn_processor(AttnProcessor())
        encoder.model.set_attn_implementation("eager")
    parameters = [p for module in (denoiser, encoder.model) for p in module.parameters()]
    optimiser = torch.optim.AdamW(
        [*parameters, *position_heads.heads.parameters(), *caption_head.head.parameters()],
        lr=peak,
        weight_decay=1e-3,
        betas=(0.9, 0.99),
        fused=True,
    )

    def compute_loss() -> tuple[Tensor, dict[str, Tensor]]:
        batch = data.batch(rows, rng, device)
        x = tables.add_noise(batch.source, batch.noise, batch.t)
        with autocast(device):
            condition = encoder(batch.captions)
        v = predict_velocity(denoiser, x, batch.t, condition)
        errors = (v - tables.velocity(x, batch.target, batch.t)).square().mean((1, 2, 3)) * tables.row_weights(batch)
        position, latent = position_heads.losses(batch.target)
        caption = caption_head.loss(batch.specs, batch.captions)
        loss = errors.mean() + head_weight * (position + latent + caption)
        return loss, mean_by_kind(errors, batch) | {"position": position, "latent": latent, "caption": caption}

    average = ExponentialMovingAverage(parameters, warmed_up_decay(EMA_DECAY))
    TrainingLoop("diffusion", optimiser, parameters, LinearDecay(peak, 200, decay_share), [average]).run(
        limit, compute_loss
    )
    position_heads.remove()
    caption_head.remove()


def caption_head_of(denoiser: UNet2DConditionModel) -> CaptionHead:
    """Return an untrained head on the text's part of the time embedding."""
    return CaptionHead(denoiser.add_embedding, int(denoiser.add_embedding.norm2.normalized_shape[0]))


def mean_by_kind(errors: Tensor, batch: Batch) -> dict[str, Tensor]:
    """Return the mean error of each kind of row, 0 where the batch has none."""
    parts = errors.tensor_split([batch.free, batch.free + batch.coupled])
    return {kind: part.sum() / max(1, len(part)) for kind, part in zip(ROW_TYPES, parts, strict=True)}
