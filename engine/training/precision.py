"""Mixed precision for training."""

from __future__ import annotations

import torch


def autocast(device: str) -> torch.autocast:
    """Return a context that computes products in bfloat16 where ``device`` has instructions for it, else in float32."""
    device_type = torch.device(device).type
    # A CPU without bfloat16 instructions emulates them, more slowly than it computes float32.
    enabled = device_type != "cpu" or torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.autocast(device_type, torch.bfloat16, enabled=enabled)
