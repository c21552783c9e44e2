"""``python -m engine.worker.probe``: five lines for ``phosphene doctor``.

torch's version, the device, how the pocket model was loaded, what is missing to compile it, and why a card is unused.
"""

from __future__ import annotations

import torch

from engine.compile.accelerator import missing_requirement
from engine.models import load, pick_device, pick_dtype
from engine.worker.unused_card import explain


def main() -> None:
    """Print the five lines."""
    device = pick_device()
    dtype = pick_dtype("auto", device)
    names = {
        "cuda": lambda: ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())),
        "mps": lambda: "Apple GPU",
        "cpu": lambda: f"{torch.get_num_threads()} threads",
    }
    print(torch.__version__)
    print(f"{device.type}: {names[device.type]()}")
    load("pocket", device, dtype)
    print(f"{device.type}, {str(dtype).removeprefix('torch.')}")
    print(missing_requirement(device) or "-")
    print(explain(device) or "-")


if __name__ == "__main__":
    main()
