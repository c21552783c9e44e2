"""Row counts: how many rows the components of a model are called with under some settings."""

from __future__ import annotations

from engine.compile.dispatch import RowCounts
from engine.diffusion import guidance
from engine.shared.settings import DiffusionSettings


def count_rows(settings: DiffusionSettings, steps: int) -> dict[str, RowCounts]:
    """Return the numbers of rows by component, for a plan of ``steps`` steps, also while its batch fills and drains."""
    frames = settings.buffer
    extra = guidance.extra_rows(settings.guidance.mode, settings.guidance.scale)
    in_flight = [n * frames for n in range(1, steps + 1)]
    negatives = {"": [0], "first": [0, frames], "all": in_flight}[extra]
    if extra == "all":
        rows = [2 * n for n in in_flight]
    else:
        rows = [n + more for n in in_flight for more in negatives]
    denoiser = RowCounts(tuple(sorted(set(rows))), 2 * steps * frames)
    codec = RowCounts((frames,), 2 * frames)
    return {"denoiser": denoiser, "regions": denoiser, "control": denoiser, "encoder": codec, "decoder": codec}
