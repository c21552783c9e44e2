"""What the denoiser learns from: latents of drawn pictures in three kinds, and how a batch mixes them."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from diffusers import AutoencoderTiny
from torch import Tensor

from engine.training.pocket.captions import Look, caption
from engine.training.pocket.drawing import draw, look
from engine.training.pocket.noise_pairing import FLOOR, coupled_picture, restyled
from engine.training.precision import mixed

log = logging.getLogger(__name__)
KINDS = ("free", "coupled", "restyled")
FINISHED = (0.3, 0.35, 0.35)  # how often a free row holds a picture of each kind


@dataclass(frozen=True)
class Batch:
    """Sources to be noised and what they must become, (B, 8, h, w) float32 each, equal but for restyled rows, which come last."""

    source: Tensor
    target: Tensor
    noise: Tensor
    t: Tensor
    captions: list[str]
    looks: list[Look]
    free: int  # so many rows, the first ones, pair any noise with any picture
    coupled: int  # so many follow, noise that becomes its family's own composition


@dataclass
class Lessons:
    """Drawn looks with the latents of their pictures, (count, 8, size/8, size/8) float16, and each restyled pair's timestep."""

    free: tuple[list[Look], Tensor]
    coupled: tuple[list[Look], Tensor]
    restyled: tuple[list[Look], Tensor, Tensor, Tensor]

    def batch(self, rows: tuple[int, int, int], rng: np.random.Generator, device: str) -> Batch:
        """A random batch of so many free, coupled and restyled rows, freshly captioned."""
        # A free row may hold any finished picture: it is what a later step of the sampler meets.
        kinds = [("free", self.free[1]), ("coupled", self.coupled[1]), ("restyled", self.restyled[2])]
        wanted = [kinds[k] for k in rng.choice(3, rows[0], p=FINISHED)]
        wanted += [kinds[1]] * rows[1] + [kinds[2]] * rows[2]
        picks = [int(rng.integers(len(latents))) for _, latents in wanted]
        looks = [getattr(self, kind)[0][i] for (kind, _), i in zip(wanted, picks, strict=True)]
        captions = [caption(chosen, rng, drop=0.1 if row < rows[0] else 0.04) for row, chosen in enumerate(looks)]
        targets = torch.stack([latents[i] for (_, latents), i in zip(wanted, picks, strict=True)])
        sources, pairs = targets.clone(), picks[rows[0] + rows[1] :]
        sources[rows[0] + rows[1] :] = self.restyled[1][pairs]
        top = torch.where(torch.rand(rows[1]) < 0.75, 999, torch.randint(FLOOR, 1000, (rows[1],)))
        t = torch.cat([torch.randint(0, FLOOR, (rows[0],)), top, self.restyled[3][pairs]]).to(device)
        source, target = sources.to(device).float(), targets.to(device).float()
        return Batch(source, target, torch.randn(source.shape).to(device), t, captions, looks, rows[0], rows[1])


def _draw_many(kind: str, seed: int, count: int, size: int) -> tuple[list[Look], np.ndarray, np.ndarray]:
    """Looks, pictures (count, 1 or 2, size, size, 3) uint8, and each pair's timestep. Picture i depends on ``(seed, i)``."""
    looks, numbers = [], np.zeros(count, np.int64)
    pictures = np.empty((count, 2 if kind == "restyled" else 1, size, size, 3), np.uint8)
    for i in range(count):
        rng = np.random.default_rng((seed, KINDS.index(kind), i))
        if kind == "coupled":
            chosen, *drawn = coupled_picture(rng, size)
        elif kind == "restyled":
            numbers[i] = rng.integers(100, FLOOR)
            chosen, *drawn = restyled(rng, float(numbers[i]) / 1000, size)
        else:
            chosen = look(rng)
            drawn = [draw(chosen, rng, size)]
        looks.append(chosen)
        pictures[i] = np.round(np.stack(drawn) * 255)
    return looks, pictures, numbers


@torch.inference_mode()
def _latents(autoencoder: AutoencoderTiny, pictures: np.ndarray, device: str, at_once: int = 50) -> Iterator[Tensor]:
    for k in range(0, len(pictures), at_once):
        x = torch.from_numpy(pictures[k : k + at_once]).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1
        with mixed(device):
            yield (autoencoder.encoder(x) * autoencoder.config.scaling_factor).half().cpu()


def lessons(autoencoder: AutoencoderTiny, seed: int, count: int, size: int, device: str, chunk: int = 250) -> Lessons:
    """Draws ``count`` pictures of size² of each kind, half as many pairs, and encodes them."""
    made = []
    with ProcessPoolExecutor(2) as pool:
        for kind in KINDS:
            jobs = max(1, (count if kind != "restyled" else count // 2) // chunk)
            looks: list[Look] = []
            latents: list[Tensor] = []
            numbers = []
            seeds = [seed * 10_000 + j for j in range(jobs)]
            for part, pictures, said in pool.map(_draw_many, [kind] * jobs, seeds, [chunk] * jobs, [size] * jobs):
                looks += part
                flat = torch.cat(list(_latents(autoencoder, pictures.reshape(-1, size, size, 3), device)))
                latents.append(flat.unflatten(0, (-1, pictures.shape[1])))
                numbers.append(torch.from_numpy(said))
            log.info("drew and encoded %d %s pictures of %d²", len(looks), kind, size)
            made.append((looks, torch.cat(latents), torch.cat(numbers)))
    free, tied, pairs = made
    return Lessons(
        (free[0], free[1][:, 0]), (tied[0], tied[1][:, 0]), (pairs[0], pairs[1][:, 0], pairs[1][:, 1], pairs[2])
    )  # fmt: skip
