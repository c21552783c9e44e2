"""A small pattern classifier, trained on drawn pictures alone. It judges the pocket model's pictures."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from engine.training.pocket.drawing import draw, random_spec
from engine.training.pocket.patterns import PATTERNS

log = logging.getLogger(__name__)
WEIGHTS = Path(__file__).parents[2] / "pocket" / "classifier.safetensors"
SIDE = 64
NAMES = tuple(PATTERNS)


def network() -> nn.Sequential:
    """Return an untrained network: 64² greyscale pictures (B, 1, 64, 64) → a score for each pattern."""

    def stage(inputs: int, outputs: int) -> list[nn.Module]:
        return [nn.Conv2d(inputs, outputs, 3, 2, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]

    return nn.Sequential(
        nn.Conv2d(1, 32, 3, 1, 1), nn.ReLU(), *stage(32, 48), *stage(48, 64), *stage(64, 96), *stage(96, 96),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Dropout(0.3), nn.Linear(384, len(NAMES)),
    )  # fmt: skip


def preprocess(picture: np.ndarray) -> np.ndarray:
    """Return RGB uint8 of any square size as (64, 64) float32 in 0..1.

    It is the brightest channel with its contrast stretched: colour must not influence the answer.
    """
    grey = cv2.resize(picture.max(-1).astype(np.float32), (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    low, high = np.quantile(grey, (0.02, 0.98))
    return np.clip((grey - low) / max(float(high - low), 1.0), 0, 1).astype(np.float32)


def _draw_chunk(seed: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    pictures, labels = np.empty((count, SIDE, SIDE), np.float32), np.empty(count, np.int64)
    for i in range(count):
        rng = np.random.default_rng((seed, i))
        spec = random_spec(rng)
        pictures[i] = preprocess(np.round(draw(spec, rng, 128) * 255).astype(np.uint8))
        labels[i] = NAMES.index(spec.pattern)
    return pictures, labels


def draw_dataset(seed: int, count: int, chunk: int = 500) -> tuple[Tensor, Tensor]:
    """Draw ``count`` pictures, (count, 64, 64) float32, and return them with their patterns' indices."""
    with ProcessPoolExecutor(2) as pool:
        parts = list(
            pool.map(_draw_chunk, [seed * 10_000 + i for i in range(count // chunk)], [chunk] * (count // chunk))
        )
    return torch.from_numpy(np.concatenate([p for p, _ in parts])), torch.from_numpy(
        np.concatenate([n for _, n in parts])
    )


def train(seed: int = 100, epochs: int = 12, batch: int = 64) -> nn.Sequential:
    """Train, log the accuracy on held-out pictures, and save the weights.

    The schedule is torch's one-cycle policy. It drives the momentum too, so the shared loop does not fit.
    """
    torch.manual_seed(seed)
    pictures, labels = draw_dataset(seed, 12_000)
    held_out, truth = draw_dataset(seed + 1, 2_000)
    model = network()
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 4e-3, total_steps=epochs * (len(pictures) // batch))
    for epoch in range(epochs):
        model.train()
        for picks in torch.randperm(len(pictures))[: len(pictures) // batch * batch].split(batch):
            x = pictures[picks][:, None]
            x = x if torch.rand(()) < 0.5 else x.flip(-1)
            x = (x + 0.05 * torch.randn_like(x)).clamp(0, 1)
            loss = nn.functional.cross_entropy(model(x), labels[picks], label_smoothing=0.05)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
        model.eval()
        with torch.inference_mode():
            accuracy = (model(held_out[:, None]).argmax(1) == truth).float().mean().item()
        log.info("classifier epoch %d: %.1f %% of held-out drawn pictures", epoch, accuracy * 100)
    save_file(
        {name: value.half() if value.is_floating_point() else value for name, value in model.state_dict().items()},
        WEIGHTS,
    )
    return model


def load() -> nn.Sequential:
    """Load the trained classifier."""
    model = network()
    model.load_state_dict({n: v.float() if v.is_floating_point() else v for n, v in load_file(WEIGHTS).items()})
    return model.eval()


@torch.inference_mode()
def classify(model: nn.Sequential, picture: np.ndarray) -> str:
    """Return the pattern that ``picture``, RGB uint8 (H, W, 3), resembles most."""
    return NAMES[int(model(torch.from_numpy(preprocess(picture))[None, None]).argmax())]


@torch.inference_mode()
def compute_features(model: nn.Sequential, pictures: Sequence[np.ndarray]) -> np.ndarray:
    """Return the last features before the scores, (N, 384) float32, of RGB uint8 pictures."""
    x = torch.from_numpy(np.stack([preprocess(picture) for picture in pictures]))[:, None]
    return np.concatenate([model[:-1](part).numpy() for part in x.split(50)])


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    train()
