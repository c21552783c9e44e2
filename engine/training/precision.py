"""What precision training computes in."""

from __future__ import annotations

import torch


def mixed(device: str) -> torch.autocast:
    """Products in bfloat16 where ``device`` has instructions for them; float32 on a processor that would only imitate them."""
    kind = torch.device(device).type
    return torch.autocast(kind, torch.bfloat16, enabled=kind != "cpu" or torch.ops.mkldnn._is_mkldnn_bf16_supported())
