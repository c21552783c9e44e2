"""Settings of a process that streams live. Offline rendering has none of them: there, results must be repeatable.

What it sets for CUDA was not run on a GPU yet.
"""

from __future__ import annotations

import sys

import torch

#: Longest time that a thread keeps the interpreter while another one waits for it, in seconds; Python's own is 5 ms.
SWITCH_SECONDS = 0.001


def configure_live(device: torch.device) -> None:
    """Prefer short ticks: hand the interpreter over soon, and on CUDA choose kernels by trying them.

    A live stream has fixed sizes, so cuDNN tries each convolution once, in the warm-up. On ROCm that takes up to a
    minute and stays off. Matrix products of parts in float32 use TF32.
    """
    sys.setswitchinterval(SWITCH_SECONDS)
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = torch.version.hip is None
        torch.set_float32_matmul_precision("high")
