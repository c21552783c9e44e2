"""Training data of the denoiser: latents of drawn pictures in three kinds, and batches that mix them."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from diffusers import AutoencoderTiny
from torch import Tensor

from engine.training.pocket.captions import PatternSpec, write_caption
from engine.training.pocket.drawing import draw, random_spec
from engine.training.pocket.noise_pairing import FIRST_COUPLED_TIMESTEP, draw_coupled, draw_restyled_pair
from engine.training.precision import autocast

log = logging.getLogger(__name__)
ROW_TYPES = ("free", "coupled", "restyled")
FREE_ROW_SHARES = (0.3, 0.35, 0.35)  # how often a free row holds a picture of each kind
FIRST_RESTYLED_TIMESTEP = 100


@dataclass(frozen=True)
class Batch:
    """Source latents, to which noise is added, and target latents, (B, 8, h, w) float32 each, with noise of that shape.

    Source and target are equal but for restyled rows, which come last. ``t`` is (B,).
    """

    source: Tensor
    target: Tensor
    noise: Tensor
    t: Tensor
    captions: list[str]
    specs: list[PatternSpec]
    free: int  # number of the first rows, which pair any noise with any picture
    coupled: int  # number of the rows after them, whose noise becomes its pattern's fixed composition


@dataclass
class LatentDataset:
    """Specs of drawn pictures with the latents, (count, 8, size/8, size/8) float16, and each restyled pair's timestep.

    ``restyled`` holds sources, then targets.
    """

    free: tuple[list[PatternSpec], Tensor]
    coupled: tuple[list[PatternSpec], Tensor]
    restyled: tuple[list[PatternSpec], Tensor, Tensor, Tensor]

    def batch(self, rows: tuple[int, int, int], rng: np.random.Generator, device: str) -> Batch:
        """Return a random batch with a number of free, coupled and restyled rows, under new captions."""
        # A free row may hold any finished picture: later steps of the sampler meet all of them.
        targets_of = [("free", self.free[1]), ("coupled", self.coupled[1]), ("restyled", self.restyled[2])]
        sets = [targets_of[k] for k in rng.choice(3, rows[0], p=FREE_ROW_SHARES)]
        sets += [targets_of[1]] * rows[1] + [targets_of[2]] * rows[2]
        picks = [int(rng.integers(len(latents))) for _, latents in sets]
        specs = [getattr(self, kind)[0][i] for (kind, _), i in zip(sets, picks, strict=True)]
        captions = [write_caption(spec, rng, drop=0.1 if row < rows[0] else 0.04) for row, spec in enumerate(specs)]
        targets = torch.stack([latents[i] for (_, latents), i in zip(sets, picks, strict=True)])
        sources, pairs = targets.clone(), picks[rows[0] + rows[1] :]
        sources[rows[0] + rows[1] :] = self.restyled[1][pairs]
        top = torch.where(torch.rand(rows[1]) < 0.75, 999, torch.randint(FIRST_COUPLED_TIMESTEP, 1000, (rows[1],)))
        free = torch.randint(0, FIRST_COUPLED_TIMESTEP, (rows[0],))
        t = torch.cat([free, top, self.restyled[3][pairs]]).to(device)
        source, target = sources.to(device).float(), targets.to(device).float()
        return Batch(source, target, torch.randn(source.shape).to(device), t, captions, specs, rows[0], rows[1])


def build_dataset(
    autoencoder: AutoencoderTiny, seed: int, count: int, size: int, device: str, chunk: int = 250
) -> LatentDataset:
    """Draw and encode ``count`` pictures of size² of each kind, and half as many restyled pairs."""
    subsets = []
    with ProcessPoolExecutor(2) as pool:
        for kind in ROW_TYPES:
            jobs = max(1, (count if kind != "restyled" else count // 2) // chunk)
            specs: list[PatternSpec] = []
            latents: list[Tensor] = []
            timesteps = []
            seeds = [seed * 10_000 + j for j in range(jobs)]
            chunks = pool.map(_draw_chunk, [kind] * jobs, seeds, [chunk] * jobs, [size] * jobs)
            for chunk_specs, pictures, chunk_timesteps in chunks:
                specs += chunk_specs
                flat = torch.cat(list(_encode(autoencoder, pictures.reshape(-1, size, size, 3), device)))
                latents.append(flat.unflatten(0, (-1, pictures.shape[1])))
                timesteps.append(torch.from_numpy(chunk_timesteps))
            log.info("drew and encoded %d %s pictures of %d²", len(specs), kind, size)
            subsets.append((specs, torch.cat(latents), torch.cat(timesteps)))
    free, coupled, pairs = subsets
    return LatentDataset(
        free=(free[0], free[1][:, 0]),
        coupled=(coupled[0], coupled[1][:, 0]),
        restyled=(pairs[0], pairs[1][:, 0], pairs[1][:, 1], pairs[2]),
    )


def _draw_chunk(kind: str, seed: int, count: int, size: int) -> tuple[list[PatternSpec], np.ndarray, np.ndarray]:
    """Draw specs, pictures (count, 1 or 2, size, size, 3) uint8 and timesteps; row i depends on ``(seed, i)`` alone."""
    specs, timesteps = [], np.zeros(count, np.int64)
    pictures = np.empty((count, 2 if kind == "restyled" else 1, size, size, 3), np.uint8)
    for i in range(count):
        rng = np.random.default_rng((seed, ROW_TYPES.index(kind), i))
        if kind == "coupled":
            spec, *drawn = draw_coupled(rng, size)
        elif kind == "restyled":
            timesteps[i] = rng.integers(FIRST_RESTYLED_TIMESTEP, FIRST_COUPLED_TIMESTEP)
            spec, *drawn = draw_restyled_pair(rng, float(timesteps[i]) / 1000, size)
        else:
            spec = random_spec(rng)
            drawn = [draw(spec, rng, size)]
        specs.append(spec)
        pictures[i] = np.round(np.stack(drawn) * 255)
    return specs, pictures, timesteps


@torch.inference_mode()
def _encode(autoencoder: AutoencoderTiny, pictures: np.ndarray, device: str, batch: int = 50) -> Iterator[Tensor]:
    for k in range(0, len(pictures), batch):
        x = torch.from_numpy(pictures[k : k + batch]).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1
        with autocast(device):
            yield (autoencoder.encoder(x) * autoencoder.config.scaling_factor).half().cpu()
