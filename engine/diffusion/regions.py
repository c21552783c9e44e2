"""Region-adaptive sampling: from velocities and changes to the tokens that are computed next.

Liu et al., "Region-Adaptive Sampling for Diffusion Transformers" (arXiv 2502.10389): a token that is skipped keeps its
last velocity. Its letters: m the metric of a token, d the times in a row that it was skipped, k the starvation factor,
K the number of skipped tokens, h the share of the highest among them. Along the frames of a stream a token's change is
measured against what it was when it was last computed, as in Dutson et al., "Eventful Transformers" (arXiv 2308.13494).

All functions are pure. Tokens are in the grid's row-major order: (rows, N).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

#: Shares of the tokens that can be computed. Few, because a compiler builds each one's sizes.
SHARES = (1.0, 0.5, 0.25, 0.125, 0.0625)
#: Scores of the tokens that are due, of the stale ones by their level, and the highest of a change.
DUE_SCORE, STALE_SCORE, MAX_CHANGE_SCORE = 1e6, 1e4, 1e3
#: Score of each time that a token was skipped, far below the others.
AGE_SCORE = 1e-6
#: Largest exponent of the starvation: e^40 times a measure is far from the end of float32.
MAX_STARVATION = 40.0
#: Smallest signal by which a change is divided: at full noise there is none.
MIN_SIGNAL = 0.05
#: Rounds until a picture holds nothing of an old one: in the first, tokens still attend to stale ones.
REFRESH_ROUNDS = 2


def nearest_share(share: float) -> float:
    """Return the one of SHARES that is nearest to ``share`` by its ratio."""
    return min(SHARES, key=lambda one: max(one / share, share / one))


def count_active(tokens: int, share: float) -> int:
    """Return how many of ``tokens`` are computed at ``share``: all but K = int((1 − share)·N)."""
    return tokens - int((1.0 - share) * tokens)


def smallest_share(tokens: int, needed: int, budget: float) -> float:
    """Return the smallest of SHARES that covers ``needed`` tokens, at most ``budget``; 0 where none is needed."""
    if not needed:
        return 0.0
    return next((s for s in reversed(SHARES) if s <= budget and count_active(tokens, s) >= needed), budget)


def ramped_share(share: float, ramp: float, position: int, start: int, steps: int) -> float:
    """Return the share of a step: from 1 at the first sparse step ``start`` down to ``share`` at the last one.

    A ``ramp`` of 0 has ``share`` throughout, 1 falls evenly, between them the fall is shorter.
    """
    if ramp <= 0.0:
        return nearest_share(share)
    done = min(1.0, (position - start + 1) / max(1.0, ramp * (steps - start)))
    return nearest_share(1.0 + (share - 1.0) * done)


def is_dense_step(position: int, start: int, resets: Sequence[int]) -> bool:
    """Return whether all tokens are computed at a step, counted from 0: the first ``start`` ones and the resets."""
    return position < start or position in resets


def fills_cache(position: int, start: int, resets: Sequence[int]) -> bool:
    """Return whether a dense step stores its keys and values: the last one before ``start``, and the resets."""
    return position == start - 1 or position in resets


def to_tokens(latents: Tensor, patch: int) -> Tensor:
    """Return latents (rows, C, h, w) as tokens (rows, N, C·patch²), each as ``pixel_unshuffle`` orders a patch."""
    return pixel_unshuffle(latents, patch).flatten(2).transpose(1, 2)


def to_latents(tokens: Tensor, patch: int, height: int, width: int) -> Tensor:
    """Invert ``to_tokens``; ``height`` and ``width`` are those of the latents."""
    grid = tokens.transpose(1, 2).unflatten(2, (height // patch, width // patch))
    return pixel_shuffle(grid, patch)


def metric(v: Tensor, kind: str, patch: int, generator: torch.Generator | None = None) -> Tensor:
    """Return m of each token, (rows, N), from the velocity (rows, C, h, w); see the paper's section 3.2.

    ``std`` is the standard deviation over the channels with n − 1, ``l2`` the norm over them, each averaged over the
    patch. ``random`` draws from ``generator``.
    """
    if kind == "std":
        of_pixels = v.std(1, keepdim=True)
    elif kind == "l2":
        of_pixels = torch.linalg.vector_norm(v, dim=1, keepdim=True)
    else:
        rows, _, height, width = v.shape
        return torch.rand(rows, height * width // patch**2, generator=generator, device=v.device)
    return torch.nn.functional.avg_pool2d(of_pixels, patch).flatten(1)


def starve(d: Tensor, starvation: float) -> Tensor:
    """Return exp(k·d), the growth of a token's weight, limited so that no product overflows."""
    return torch.exp((starvation * d).clamp(max=MAX_STARVATION))


def select_focus(m: Tensor, d: Tensor, share: float, high: float, starvation: float) -> Tensor:
    """Return the active tokens' indices, (rows, A) in ascending order.

    Of the K skipped ones int(K·h) have the highest m·exp(−k·d) and the others the lowest m·exp(k·d), so that a token
    that was skipped for long comes to be computed from either side.
    """
    tokens = m.shape[1]
    skipped = tokens - count_active(tokens, share)
    highest = int(skipped * high)
    weight = starve(d, starvation)
    is_skipped = torch.zeros_like(m, dtype=torch.bool)
    is_skipped.scatter_(1, (m / weight).topk(highest, 1).indices, True)
    rest = (m * weight).masked_fill(is_skipped, torch.inf)
    is_skipped.scatter_(1, rest.topk(skipped - highest, 1, largest=False).indices, True)
    return indices_of(~is_skipped, tokens - skipped)


def indices_of(mask: Tensor, count: int) -> Tensor:
    """Return the indices of the ``count`` tokens that are set in each row of ``mask``, (rows, count), ascending."""
    return mask.to(torch.uint8).sort(dim=1, descending=True, stable=True).indices[:, :count]


def change(tokens: Tensor, reference: Tensor, signal: Tensor) -> Tensor:
    """Return how much each token changed, (rows, N): the mean absolute difference of (rows, N, width).

    ``signal`` is each row's a, (rows, 1): dividing by it measures the clean latent.
    """
    return (tokens - reference).abs().mean(2) / signal


def refresh_phases(tokens: int, refresh: int) -> Tensor:
    """Return the frame, of ``refresh`` ones, at which each token's turn comes, (N,): spread evenly in no order."""
    order = torch.randperm(tokens, generator=torch.Generator().manual_seed(0))
    return order * refresh // tokens


def score_changes(
    changes: Tensor, threshold: float, d: Tensor, starvation: float, stale: Tensor, is_due: Tensor
) -> Tensor:
    """Return the order in which tokens are computed, (rows, N): 0 for those that need not be.

    First come the due ones, then the ``stale`` ones by their level (0 is not stale), then the changed ones by their
    change, each multiplied by exp(k·d).
    """
    of_change = changes / threshold
    changed = (of_change * starve(d, starvation)).clamp(max=MAX_CHANGE_SCORE)
    score = torch.where(of_change > 1.0, changed, 0.0)
    return score + STALE_SCORE * stale + DUE_SCORE * is_due


def add_focus(score: Tensor, m: Tensor, d: Tensor, starvation: float) -> Tensor:
    """Return ``score`` with the model's focus, below 1, where it is 0: m·exp(k·d) relative to the row's highest."""
    focus = m * starve(d, starvation)
    focus = 0.99 * focus / focus.amax(1, keepdim=True).clamp(min=1e-12)
    return torch.where(score > 0.0, score, focus)


def select_highest(score: Tensor, d: Tensor, count: int) -> Tensor:
    """Return the indices of the ``count`` highest scores of each row, (rows, count) in ascending order.

    Among equal scores those come first that were skipped longest.
    """
    return (score + AGE_SCORE * d).topk(count, 1).indices.sort(1).values
