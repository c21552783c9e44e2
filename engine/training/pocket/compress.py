"""Compression: a denoiser with fewer and narrower layers learns to answer as a larger one, its teacher, does.

As in Kim et al., "BK-SDM" (arXiv 2305.15798), the student starts from the layers that both have. It must match the
teacher's answer and the output of each of its blocks, through a 1×1 convolution where that is wider (Romero et al.,
"FitNets", arXiv 1412.6550). The teacher is distilled already, and so then is the student.
"""

from __future__ import annotations

import itertools

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn

from engine.training.loop import ExponentialMovingAverage, Limit, LinearDecay, TrainingLoop, warmed_up_decay
from engine.training.pocket.dataset import FIRST_RESTYLED_TIMESTEP, Batch, LatentDataset
from engine.training.pocket.diffusion import EMA_DECAY, CaptionEncoder, NoiseTables, predict_velocity
from engine.training.pocket.noise_pairing import FIRST_COUPLED_TIMESTEP


class BlockFeatures:
    """Outputs of the blocks of ``denoiser`` in the last forward pass."""

    def __init__(self, denoiser: UNet2DConditionModel) -> None:
        blocks = [*denoiser.down_blocks, denoiser.mid_block, *denoiser.up_blocks]
        self._features: list[Tensor] = []
        self._hooks = [block.register_forward_hook(self._record) for block in blocks]

    def _record(self, _block: nn.Module, _inputs: object, output: Tensor | tuple[Tensor, ...]) -> None:
        self._features.append(output[0] if isinstance(output, tuple) else output)

    def pop(self) -> list[Tensor]:
        """Return the features since the last call, a tensor a block."""
        features, self._features = self._features, []
        return features

    def remove(self) -> None:
        """Remove the hooks from the denoiser."""
        for hook in self._hooks:
            hook.remove()


def copy_shared_layers(teacher: UNet2DConditionModel, student: UNet2DConditionModel) -> list[str]:
    """Copy the weights of the layers that both have, and return the names of the teacher's other weights.

    Where a level of the student is narrower it gets the first channels. Raises ValueError where the student has a
    weight that the teacher lacks, or whose shape the levels' widths do not explain.
    """
    student_weights, teacher_weights = student.state_dict(), teacher.state_dict()
    levels = [*zip(teacher.config["block_out_channels"], student.config["block_out_channels"], strict=True)]
    weights: dict[str, Tensor] = {}
    if teacher.time_proj.num_channels != student.time_proj.num_channels:
        teacher_weights["time_embedding.linear_1.weight"] = _fit_time_embedding(teacher, student)
    for name, value in student_weights.items():
        weight = teacher_weights.get(name)
        shapes = [] if weight is None else [*zip(weight.shape, value.shape, strict=True)]
        channels = [_select_channels(wide, narrow, levels) for wide, narrow in shapes]
        if weight is None or None in channels:
            raise ValueError(f"the larger denoiser has no {name} of that shape")
        for dim, index in enumerate(channels):
            weight = weight.index_select(dim, torch.tensor(index))
        weights[name] = weight
    student.load_state_dict(weights)
    return [name for name in teacher_weights if name not in student_weights]


def _fit_time_embedding(teacher: UNet2DConditionModel, student: UNet2DConditionModel) -> Tensor:
    """Return the time embedding's first weight for the student's fewer waves: least squares over all timesteps."""
    t = torch.arange(1000)
    output = teacher.time_proj(t) @ teacher.time_embedding.linear_1.weight.detach().T
    return torch.linalg.lstsq(student.time_proj(t), output).solution.T


def _select_channels(wide: int, narrow: int, levels: list[tuple[int, int]]) -> list[int] | None:
    """Return the indices of the ``narrow`` channels among the ``wide`` ones; None where the levels do not explain both.

    They are one level's, or those of two levels concatenated, the deeper one's first. ``levels`` holds (wide, narrow).
    """
    if wide == narrow or ((wide, narrow) in levels and wide > narrow):
        return [*range(narrow)]
    for (first, of_first), (second, of_second) in itertools.product(reversed(levels), levels):
        if (first + second, of_first + of_second) == (wide, narrow) and of_first <= first and of_second <= second:
            return [*range(of_first), *range(first, first + of_second)]
    return None


def _new_projections(teacher: UNet2DConditionModel, student: UNet2DConditionModel) -> nn.ModuleList:
    """Return a module for each block that widens the student's features to the teacher's channels."""

    def widths(denoiser: UNet2DConditionModel) -> list[int]:
        high, middle, low = denoiser.config["block_out_channels"]
        return [high, middle, low, low, low, middle, high]

    pairs = zip(widths(student), widths(teacher), strict=True)
    return nn.ModuleList([nn.Identity() if a == b else nn.Conv2d(a, b, 1) for a, b in pairs]).to(student.device)


def mismatch_conditions(batch: Batch) -> tuple[Tensor, list[str]]:
    """Return timesteps (B,) and captions for ``batch`` like those of live inputs: any prompt at any strength.

    The teacher can answer any combination. Restyled sources get any timestep, and every second free picture gets the
    next one's caption.
    """
    t, captions, first = batch.t.clone(), list(batch.captions), batch.free + batch.coupled
    t[first:] = torch.randint(FIRST_RESTYLED_TIMESTEP, FIRST_COUPLED_TIMESTEP, (len(t) - first,)).to(t.device)
    for row in range(0, batch.free - 1, 2):
        captions[row] = batch.captions[row + 1]
    return t, captions


def train(
    teacher: UNet2DConditionModel,
    student: UNet2DConditionModel,
    encoder: CaptionEncoder,
    data: LatentDataset,
    limit: Limit,
    seed: int,
    rows: tuple[int, int, int],
    peak: float = 1e-3,
    feature_weight: float = 0.2,
) -> None:
    """Train ``student`` in place until ``limit``; it ends as its moving average. Both get the same caption embeddings.

    The loss is the mean squared difference of v, plus ``feature_weight`` times that of the blocks' features. Each
    block's is relative to the teacher's mean square.
    """
    device = str(student.device)
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    tables = NoiseTables(device)
    teacher.requires_grad_(False)
    if device == "cpu":  # unfused attention trains faster on a CPU
        student.set_attn_processor(AttnProcessor())
    teacher_features, student_features = BlockFeatures(teacher), BlockFeatures(student)
    projections = _new_projections(teacher, student)
    optimiser = torch.optim.AdamW(
        [*student.parameters(), *projections.parameters()], lr=peak, weight_decay=1e-3, betas=(0.9, 0.99), fused=True
    )

    def compute_loss() -> tuple[Tensor, dict[str, Tensor]]:
        batch = data.batch(rows, rng, device)
        t, captions = mismatch_conditions(batch)
        x = tables.add_noise(batch.source, batch.noise, t)
        with torch.no_grad():
            condition = encoder(captions)
            target = predict_velocity(teacher, x, t, condition)
        velocity = (predict_velocity(student, x, t, condition) - target).square().mean()
        blocks = zip(projections, student_features.pop(), teacher_features.pop(), strict=True)
        features = torch.stack(
            [(widen(a.float()) - b.float()).square().mean() / b.float().square().mean() for widen, a, b in blocks]
        ).mean()
        return velocity + feature_weight * features, {"v": velocity, "features": features}

    average = ExponentialMovingAverage(student.parameters(), warmed_up_decay(EMA_DECAY))
    loop = TrainingLoop("compression", optimiser, student.parameters(), LinearDecay(peak, 20, 0.6), [average])
    loop.run(limit, compute_loss)
    teacher_features.remove()
    student_features.remove()
