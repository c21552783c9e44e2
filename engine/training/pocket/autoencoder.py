"""Stage 1 of the pocket model's training: an AutoencoderTiny, factor 8, eight latent channels.

From nothing, or from one with more layers, whose latents it keeps: what was learnt on them goes on with it.
"""

from __future__ import annotations

import logging
import time
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import torch
from diffusers import AutoencoderTiny
from diffusers.models.autoencoders.vae import AutoencoderTinyBlock
from torch import Tensor
from torch.nn import functional as F

from engine.training.pocket.drawing import training_picture
from engine.training.precision import mixed

log = logging.getLogger(__name__)
WIDTH = 32


def new_autoencoder() -> AutoencoderTiny:
    """An untrained autoencoder: nearly all blocks at an eighth of the resolution, as time goes where pixels are many."""
    model = AutoencoderTiny(
        encoder_block_out_channels=(WIDTH,) * 4,
        decoder_block_out_channels=(WIDTH,) * 4,
        num_encoder_blocks=(0, 0, 0, 2),
        num_decoder_blocks=(3, 1, 0, 0),
        latent_channels=8,
        scaling_factor=2.0,
    )
    _initialise(model)
    return model


@torch.no_grad()
def _initialise(model: AutoencoderTiny) -> None:
    """Variance-preserving weights, residual branches started small: without it these unnormalised layers pass only the mean colour."""
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


def carry_over(larger: AutoencoderTiny, smaller: AutoencoderTiny) -> list[str]:
    """Copies the weights of the layers that both have; returns those left behind, as "encoder level 1 AutoencoderTinyBlock 0".

    Raises KeyError where the smaller one has a layer that the larger one lacks.
    """
    given, own = _layers(larger), _layers(smaller)
    for name, layer in own.items():
        layer.load_state_dict(given[name].state_dict())
    return [name for name in given if name not in own]


def _layers(model: AutoencoderTiny) -> dict[str, torch.nn.Module]:
    """The layers with weights, by level, kind and number: their places in the sequence shift where one is left out."""
    found: dict[str, torch.nn.Module] = {}
    for part in ("encoder", "decoder"):
        level = 0
        for layer in getattr(model, part).layers:
            level += isinstance(layer, torch.nn.Upsample) or getattr(layer, "stride", None) == (2, 2)
            if any(True for _ in layer.parameters()):
                kind = f"{part} level {level} {type(layer).__name__}"
                found[f"{kind} {sum(name.startswith(kind) for name in found)}"] = layer
    return found


def canvases(seed: int, count: int, size: int = 256) -> np.ndarray:
    """``count`` training pictures, (count, size, size, 3) uint8. Picture i depends on ``(seed, i)`` alone."""
    out = np.empty((count, size, size, 3), np.uint8)
    for i in range(count):
        out[i] = np.round(training_picture(np.random.default_rng((seed, i)), size) * 255)
    return out


def reconstruction_loss(output: Tensor, target: Tensor) -> Tensor:
    """Mean squared and absolute error, and the error of the gradients, so that edges stay edges. (B, 3, H, W) each."""
    error = output - target
    dy, dx = error.diff(dim=-2), error.diff(dim=-1)
    return 3 * error.square().mean() + error.abs().mean() * 0.5 + 0.25 * (dy.abs().mean() + dx.abs().mean())


def train(
    minutes: float,
    seed: int,
    device: str,
    larger: AutoencoderTiny | None = None,
    model: AutoencoderTiny | None = None,
    pictures: int = 6000,
    batch: int = 8,
) -> AutoencoderTiny:
    """Trains for ``minutes`` on random 128² crops of 256² canvases and returns the moving average of the weights.

    ``model`` is what it starts from. With a ``larger`` one the latents are to be that one's, and half of the rows are decoded from
    that one's own; without it they are drawn to unit variance.
    """
    torch.manual_seed(seed)
    with ProcessPoolExecutor(2) as pool:
        parts = pool.map(canvases, [seed * 1000 + k for k in range(8)], [pictures // 8] * 8)
        data = torch.from_numpy(np.concatenate(list(parts)))
    log.info("drew %d canvases", len(data))
    model = (model or new_autoencoder()).to(device, memory_format=torch.channels_last).train()
    if larger is not None:
        larger = larger.to(device, memory_format=torch.channels_last).requires_grad_(False)
    average = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.998))
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=1e-4, betas=(0.9, 0.99))
    rng = torch.Generator().manual_seed(seed)
    start, step = time.monotonic(), 0
    while (done := (time.monotonic() - start) / (minutes * 60)) < 1:
        rate = 1e-3 * min(1.0, step / 100) * (1.0 - done) ** 0.7 + 1e-5
        for group in optimiser.param_groups:
            group["lr"] = rate
        x = _crops(data, batch, rng).to(device, memory_format=torch.channels_last)
        with mixed(device):
            z = model.encoder(x)
            theirs = None if larger is None else larger.encoder(x)
            decoded = z if theirs is None else torch.cat([z[: batch // 2], theirs[batch // 2 :]])
            y = model.decoder(decoded + 0.03 * torch.randn_like(z))
        z = z.float()
        if theirs is None:
            moments = (
                z.mean((0, 2, 3)).square().mean()
                + (z.std((0, 2, 3)) - 1).square().mean()
                + 0.02 * F.relu(z.abs() - 3).mean()
            )
            latents = 0.01 * moments
        else:
            latents = 0.5 * F.mse_loss(z, theirs.float())
        loss = reconstruction_loss(y.float(), x) + latents
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        if step > 300:
            average.update_parameters(model)
        if step % 200 == 0:
            mse = F.mse_loss(y.float().clamp(-1, 1), x).item() / 4
            shown = (step, done * 100, loss.item(), latents.item(), -10 * np.log10(mse))
            log.info("autoencoder step %d, %.0f %%, loss %.4f, of which latents %.4f, PSNR %.2f dB", *shown)
        step += 1
    trained = average.module if step > 300 else model
    return trained.eval()


def _crops(data: Tensor, batch: int, rng: torch.Generator, size: int = 128) -> Tensor:
    """Random crops of random canvases, half of them mirrored, (batch, 3, size, size) in -1..1."""
    picks = torch.randint(len(data), (batch,), generator=rng).tolist()
    corners = torch.randint(data.shape[1] - size + 1, (batch, 2), generator=rng).tolist()
    crops = torch.stack([data[i, y : y + size, x : x + size] for i, (y, x) in zip(picks, corners, strict=True)])
    if torch.rand((), generator=rng) < 0.5:
        crops = crops.flip(2)
    return crops.permute(0, 3, 1, 2).float() / 127.5 - 1
