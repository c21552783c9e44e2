"""The pocket transformer's training: an SD3 transformer on the pocket model's latents, by flow matching.

x = (1 − σ)·z + σ·ε with σ = (t + 1)/1000, and the network answers v = ε − z (Esser et al., arXiv 2403.03206). It learns
from the same three kinds of rows as the U-Net (``dataset.py``), under the pocket model's text encoder, which stays as
it is. ``distill`` is latent consistency distillation (Luo et al., arXiv 2310.04378) along the flow.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from engine.training.loop import ExponentialMovingAverage, Limit, LinearDecay, TrainingLoop, warmed_up_decay
from engine.training.pocket.auxiliary_heads import CaptionHead
from engine.training.pocket.dataset import Batch, LatentDataset
from engine.training.pocket.diffusion import CaptionEncoder, mean_by_kind
from engine.training.pocket.noise_pairing import FIRST_COUPLED_TIMESTEP
from engine.training.pocket.text_encoder import EMBEDDING_WIDTH
from engine.training.precision import autocast
from engine.training.run_state import RunState

WIDTH, LAYERS, HEAD_WIDTH = 160, 7, 32
#: Longest side of the token grid: 1024 pixels.
MAX_GRID = 64
#: Periods of the position waves, in tokens: from the finest that a grid can show to the widest that it needs.
SHORTEST_PERIOD, LONGEST_PERIOD = 3.0, 64.0
EMA_DECAY, TARGET_EMA_DECAY = 0.999, 0.95
#: Training timesteps of one teacher step: 1000 / 50.
TEACHER_STRIDE = 20
#: σ² from which a restyled row's error has its whole weight: below, v amplifies the difference of source and target.
FULL_WEIGHT_NOISE = 0.3

#: Captions to tokens (B, 32, 192) and the pooled text (B, 192).
CaptionCondition = tuple[Tensor, Tensor]


def new_transformer(width: int = WIDTH, layers: int = LAYERS, head_width: int = HEAD_WIDTH) -> SD3Transformer2DModel:
    """Return an untrained transformer whose blocks begin as the identity."""
    model = SD3Transformer2DModel(
        sample_size=32,
        patch_size=2,
        in_channels=8,
        num_layers=layers,
        attention_head_dim=head_width,
        num_attention_heads=width // head_width,
        joint_attention_dim=EMBEDDING_WIDTH,
        caption_projection_dim=width,
        pooled_projection_dim=EMBEDDING_WIDTH,
        out_channels=8,
        pos_embed_max_size=MAX_GRID,
        qk_norm="rms_norm",
    )
    model.pos_embed.pos_embed.copy_(position_table(width, MAX_GRID))
    patches = model.pos_embed.proj
    nn.init.xavier_uniform_(patches.weight.view(len(patches.weight), -1))
    nn.init.zeros_(patches.bias)
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            begins_at_zero = "norm" in name or name == "proj_out"
            nn.init.zeros_(module.weight) if begins_at_zero else nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    return model


def position_table(width: int, grid: int) -> Tensor:
    """Return the position embeddings of a square grid, (1, grid², width): waves of the row, then of the column.

    diffusers' own table counts in the picture's sides, so the waves of a small grid would all be longer than it.
    """
    periods = torch.logspace(math.log2(SHORTEST_PERIOD), math.log2(LONGEST_PERIOD), width // 4, base=2.0)
    angles = 2 * math.pi * (torch.arange(grid) - (grid - 1) / 2)[:, None] / periods
    waves = torch.cat([angles.sin(), angles.cos()], 1)
    rows, columns = waves[:, None].expand(grid, grid, -1), waves[None].expand(grid, grid, -1)
    return torch.cat([rows, columns], -1).reshape(1, grid * grid, width)


def new_scheduler() -> FlowMatchEulerDiscreteScheduler:
    """Return the sampler of the finished model."""
    return FlowMatchEulerDiscreteScheduler(shift=1.0)


class PooledCaptionEncoder:
    """Captions to tokens (B, 32, 192) and the pooled text (B, 192), by a text encoder that does not change."""

    def __init__(self, tokenizer: CLIPTokenizer, model: CLIPTextModel) -> None:
        self.model = model.eval().requires_grad_(False)
        self._encoder = CaptionEncoder(tokenizer, self.model)

    @torch.no_grad()
    def __call__(self, captions: list[str]) -> CaptionCondition:
        output = self._encoder.encode(captions)
        assert output.last_hidden_state is not None
        assert output.pooler_output is not None
        return output.last_hidden_state, output.pooler_output


def noise_level(t: Tensor) -> Tensor:
    """Return σ of training timesteps (B,), −1 to 999, as (B, 1, 1, 1): 0 for −1, the clean end."""
    return ((t + 1) / 1000).view(-1, 1, 1, 1)


def add_noise(z: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """Return (1 − σ)·z + σ·noise."""
    return torch.lerp(z, noise, noise_level(t))


def predict_velocity(model: SD3Transformer2DModel, x: Tensor, t: Tensor, condition: CaptionCondition) -> Tensor:
    """Return v for ``x`` (B, 8, h, w) at ``t`` (B,) in float32, computed in mixed precision."""
    tokens, pooled = condition
    with autocast(str(x.device)):
        output = model(x, tokens, pooled, (t + 1).float(), return_dict=False)[0]
    return output.float()


def caption_head_of(model: SD3Transformer2DModel) -> CaptionHead:
    """Return an untrained head on the embedded pooled text, which modulates every block."""
    return CaptionHead(model.time_text_embed.text_embedder, int(model.inner_dim))


def train(
    model: SD3Transformer2DModel,
    encoder: PooledCaptionEncoder,
    data: LatentDataset,
    limit: Limit,
    seed: int,
    rows: tuple[int, int, int],
    peak: float = 1e-3,
    decay_share: float = 0.6,
    head_weight: float = 0.05,
    on_step: Callable[[ExponentialMovingAverage], None] = lambda _average: None,
    run_state: RunState | None = None,
    name: str = "transformer",
) -> None:
    """Train in place until ``limit`` on batches of ``rows`` free, coupled and restyled rows.

    The model ends as its moving average, which ``on_step`` receives before each step. A ``run_state`` whose stage is
    ``name`` lets a killed run continue.
    """
    device = str(model.device)
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    head = caption_head_of(model).to(device)
    parameters = list(model.parameters())
    optimiser = torch.optim.AdamW(
        [*parameters, *head.head.parameters()], lr=peak, weight_decay=1e-2, betas=(0.9, 0.98), fused=True
    )
    average = ExponentialMovingAverage(parameters, warmed_up_decay(EMA_DECAY))

    def compute_loss() -> tuple[Tensor, dict[str, Tensor]]:
        on_step(average)
        batch = data.batch(rows, rng, device)
        v = predict_velocity(model, add_noise(batch.source, batch.noise, batch.t), batch.t, encoder(batch.captions))
        errors = (v - velocity(batch)).square().mean((1, 2, 3)) * row_weights(batch)
        caption = head.loss(batch.specs, batch.captions)
        return errors.mean() + head_weight * caption, mean_by_kind(errors, batch) | {"caption": caption}

    TrainingLoop(name, optimiser, parameters, LinearDecay(peak, 300, decay_share), [average]).run(
        limit, compute_loss, run_state, rng
    )
    head.remove()


def velocity(batch: Batch) -> Tensor:
    """Return the v that leads from the noised source to the target: (x − target) / σ."""
    return (add_noise(batch.source, batch.noise, batch.t) - batch.target) / noise_level(batch.t)


def row_weights(batch: Batch) -> Tensor:
    """Return the weight of each row's error, (B,): 1, and less for restyled rows with little noise."""
    weights = (noise_level(batch.t).flatten().square() / FULL_WEIGHT_NOISE).clamp(max=1.0)
    weights[: batch.free + batch.coupled] = 1.0
    return weights


def predict_clean(model: SD3Transformer2DModel, x: Tensor, t: Tensor, condition: CaptionCondition) -> Tensor:
    """Return f(x, t) = x − σ·v, which is x itself at the clean end, −1."""
    return x - noise_level(t) * predict_velocity(model, x, t.clamp(min=0), condition)


def teacher_step(
    model: SD3Transformer2DModel, x: Tensor, t: Tensor, pair: CaptionCondition, guidance: Tensor
) -> Tensor:
    """Take one Euler step from t to t − TEACHER_STRIDE under classifier-free guidance.

    ``pair`` holds the empty captions' condition, then the captions'. ``guidance`` is (B,).
    """
    empty, captioned = predict_velocity(model, torch.cat([x, x]), torch.cat([t, t]), pair).chunk(2)
    v = empty + guidance.view(-1, 1, 1, 1) * (captioned - empty)
    return x - (noise_level(t) - noise_level((t - TEACHER_STRIDE).clamp(min=-1))) * v


def distill(
    model: SD3Transformer2DModel,
    encoder: PooledCaptionEncoder,
    data: LatentDataset,
    limit: Limit,
    seed: int,
    rows: tuple[int, int, int],
    guidance: tuple[float, float] = (1.5, 3.0),
    peak: float = 3e-4,
    run_state: RunState | None = None,
) -> None:
    """Distil ``model`` in place until ``limit``; it ends as its moving average, see ``train`` for ``run_state``.

    Free rows learn that f gives the same picture one guided step of the teacher further on. Coupled and restyled rows
    have one right answer and stay a regression.
    """
    device = str(model.device)
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    teacher = copy.deepcopy(model).requires_grad_(False)
    target_model = copy.deepcopy(model).requires_grad_(False)
    optimiser = torch.optim.AdamW(model.parameters(), lr=peak, weight_decay=1e-2, betas=(0.9, 0.98), fused=True)
    free = rows[0]
    empty_tokens, empty_pooled = encoder([""])

    def compute_loss() -> tuple[Tensor, dict[str, Tensor]]:
        batch = data.batch(rows, rng, device)
        t = batch.t.clone()
        t[:free] = torch.randint(1, FIRST_COUPLED_TIMESTEP // TEACHER_STRIDE + 1, (free,), device=device)
        t[:free] = t[:free] * TEACHER_STRIDE - 1
        x = add_noise(batch.source, batch.noise, t)
        tokens, pooled = encoder(batch.captions)
        with torch.no_grad():
            w = torch.empty(free, device=device).uniform_(*guidance)
            pair = (
                torch.cat([empty_tokens.expand(free, -1, -1), tokens[:free]]),
                torch.cat([empty_pooled.expand(free, -1), pooled[:free]]),
            )
            stepped = teacher_step(teacher, x[:free], t[:free], pair, w)
            later = (t[:free] - TEACHER_STRIDE).clamp(min=-1)
            target = predict_clean(target_model, stepped, later, (tokens[:free], pooled[:free]))
            target = torch.cat([target, batch.target[free:]])
        error = predict_clean(model, x, t, (tokens, pooled)) - target
        consistency = (error[:free].square() + 0.01**2).sqrt().mean()
        regression = (error[free:] / noise_level(t[free:])).square().mean()
        return consistency + regression, {"consistency": consistency, "regression": regression}

    average = ExponentialMovingAverage(model.parameters(), warmed_up_decay(EMA_DECAY))
    target_average = ExponentialMovingAverage(
        model.parameters(), warmed_up_decay(TARGET_EMA_DECAY), average=target_model.parameters()
    )
    TrainingLoop(
        "distillation", optimiser, model.parameters(), LinearDecay(peak, 100, 0.5), [average, target_average]
    ).run(limit, compute_loss, run_state, rng)
