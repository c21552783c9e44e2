"""Stage 1 of the pocket model's training: an AutoencoderTiny, factor 8, eight latent channels.

It trains from scratch, or as the student of one with more layers. A student learns its teacher's latents, so that a
denoiser trained on those works with it unchanged.
"""

from __future__ import annotations

import logging
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import torch
from diffusers import AutoencoderTiny
from diffusers.models.autoencoders.vae import AutoencoderTinyBlock
from torch import Tensor
from torch.nn import functional as F

from engine.training.loop import ExponentialMovingAverage, Limit, TrainingLoop, delayed_decay
from engine.training.pocket.drawing import draw_training_picture
from engine.training.precision import autocast

log = logging.getLogger(__name__)
CHANNELS = 32
PEAK_LEARNING_RATE = 1e-3


def new_autoencoder() -> AutoencoderTiny:
    """Return an untrained autoencoder.

    Nearly all its blocks work at an eighth of the resolution, because blocks with more pixels take more time.
    """
    model = AutoencoderTiny(
        encoder_block_out_channels=(CHANNELS,) * 4,
        decoder_block_out_channels=(CHANNELS,) * 4,
        num_encoder_blocks=(0, 0, 0, 2),
        num_decoder_blocks=(3, 1, 0, 0),
        latent_channels=8,
        scaling_factor=2.0,
    )
    _initialise(model)
    return model


@torch.no_grad()
def _initialise(model: AutoencoderTiny) -> None:
    """Set variance-preserving weights and small residual branches.

    With the usual start these unnormalised layers pass only the mean colour.
    """
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                torch.nn.init.zeros_(module.bias)
    for module in model.modules():
        if isinstance(module, AutoencoderTinyBlock):
            module.conv[-1].weight.mul_(0.2)
    model.encoder.layers[-1].weight.mul_(0.5)
    model.decoder.layers[-1].weight.mul_(0.5)


def copy_shared_layers(teacher: AutoencoderTiny, student: AutoencoderTiny) -> list[str]:
    """Copy the weights of the layers that both have, and return the names of the teacher's other layers.

    A name is "encoder level 1 AutoencoderTinyBlock 0".
    Raises KeyError where the student has a layer that the teacher lacks.
    """
    teacher_layers, student_layers = _layers(teacher), _layers(student)
    for name, layer in student_layers.items():
        layer.load_state_dict(teacher_layers[name].state_dict())
    return [name for name in teacher_layers if name not in student_layers]


def _layers(model: AutoencoderTiny) -> dict[str, torch.nn.Module]:
    """Return the layers with weights by level, type and number, because indices shift where a layer is left out."""
    layers: dict[str, torch.nn.Module] = {}
    for part in ("encoder", "decoder"):
        level = 0
        for layer in getattr(model, part).layers:
            level += isinstance(layer, torch.nn.Upsample) or getattr(layer, "stride", None) == (2, 2)
            if any(True for _ in layer.parameters()):
                prefix = f"{part} level {level} {type(layer).__name__}"
                layers[f"{prefix} {sum(name.startswith(prefix) for name in layers)}"] = layer
    return layers


def draw_canvases(seed: int, count: int, size: int = 256) -> np.ndarray:
    """Draw ``count`` training pictures, (count, size, size, 3) uint8. Picture i depends on ``(seed, i)`` alone."""
    out = np.empty((count, size, size, 3), np.uint8)
    for i in range(count):
        out[i] = np.round(draw_training_picture(np.random.default_rng((seed, i)), size) * 255)
    return out


def reconstruction_loss(output: Tensor, target: Tensor) -> Tensor:
    """Return mean squared and absolute error, and the error of the gradients, for sharp edges. (B, 3, H, W) each."""
    error = output - target
    dy, dx = error.diff(dim=-2), error.diff(dim=-1)
    return 3 * error.square().mean() + error.abs().mean() * 0.5 + 0.25 * (dy.abs().mean() + dx.abs().mean())


def latent_moments_loss(z: Tensor) -> Tensor:
    """Return the squared deviation of latents (B, C, h, w) from zero mean and unit variance, plus a penalty above 3."""
    outliers = 0.02 * F.relu(z.abs() - 3).mean()
    return z.mean((0, 2, 3)).square().mean() + (z.std((0, 2, 3)) - 1).square().mean() + outliers


def _learning_rate(step: int, progress: float) -> float:
    return PEAK_LEARNING_RATE * min(1.0, step / 100) * (1.0 - progress) ** 0.7 + 1e-5


def train(
    limit: Limit,
    seed: int,
    device: str,
    teacher: AutoencoderTiny | None = None,
    model: AutoencoderTiny | None = None,
    pictures: int = 6000,
    batch: int = 8,
) -> AutoencoderTiny:
    """Train until ``limit`` on random 128² crops of 256² canvases; return the moving average of the model.

    Training starts from ``model``, by default an untrained one. With a ``teacher`` its latents are the target, and half
    of the rows are decoded from them. Without it the latents are drawn to unit variance.
    """
    torch.manual_seed(seed)
    with ProcessPoolExecutor(2) as pool:
        parts = pool.map(draw_canvases, [seed * 1000 + k for k in range(8)], [pictures // 8] * 8)
        data = torch.from_numpy(np.concatenate(list(parts)))
    log.info("drew %d canvases", len(data))
    student = (model or new_autoencoder()).to(device, memory_format=torch.channels_last).train()
    if teacher is not None:
        teacher = teacher.to(device, memory_format=torch.channels_last).requires_grad_(False)
    optimiser = torch.optim.AdamW(student.parameters(), lr=PEAK_LEARNING_RATE, weight_decay=1e-4, betas=(0.9, 0.99))
    rng = torch.Generator().manual_seed(seed)

    def compute_loss() -> tuple[Tensor, dict[str, Tensor]]:
        x = _random_crops(data, batch, rng).to(device, memory_format=torch.channels_last)
        with autocast(device):
            z = student.encoder(x)
            target = None if teacher is None else teacher.encoder(x)
            decoded = z if target is None else torch.cat([z[: batch // 2], target[batch // 2 :]])
            y = student.decoder(decoded + 0.03 * torch.randn_like(z))
        y, z = y.float(), z.float()
        latents = 0.01 * latent_moments_loss(z) if target is None else 0.5 * F.mse_loss(z, target.float())
        loss = reconstruction_loss(y, x) + latents
        psnr = -10 * torch.log10(F.mse_loss(y.detach().clamp(-1, 1), x) / 4)
        return loss, {"loss": loss, "of which latents": latents, "PSNR in dB": psnr}

    average = ExponentialMovingAverage(student.parameters(), delayed_decay(0.998, first_step=301))
    loop = TrainingLoop("autoencoder", optimiser, student.parameters(), _learning_rate, [average], log_every=200)
    loop.run(limit, compute_loss)
    return student.eval()


def _random_crops(data: Tensor, batch: int, rng: torch.Generator, size: int = 128) -> Tensor:
    """Return random crops of random canvases, every second batch mirrored, (batch, 3, size, size) in -1..1."""
    picks = torch.randint(len(data), (batch,), generator=rng).tolist()
    corners = torch.randint(data.shape[1] - size + 1, (batch, 2), generator=rng).tolist()
    crops = torch.stack([data[i, y : y + size, x : x + size] for i, (y, x) in zip(picks, corners, strict=True)])
    if torch.rand((), generator=rng) < 0.5:
        crops = crops.flip(2)
    return crops.permute(0, 3, 1, 2).float() / 127.5 - 1
