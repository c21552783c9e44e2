"""Mixed precision for training."""

from __future__ import annotations

import torch

from engine.models.precision import has_bfloat16


def autocast(device: str) -> torch.autocast:
    """Return a context that computes products in bfloat16 where ``device`` has instructions for it, else in float32."""
    # A device without bfloat16 instructions emulates them, more slowly than it computes float32, or refuses.
    return torch.autocast(torch.device(device).type, torch.bfloat16, enabled=has_bfloat16(torch.device(device)))
