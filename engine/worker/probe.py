"""``python -m engine.worker.probe``: five lines for ``phosphene doctor``.

torch's version, the device, the built-in models' types, what is missing to compile, and why a card is unused.
"""

from __future__ import annotations

import torch

from engine.compile.accelerator import missing_requirement
from engine.models import BUILT_IN, load, pick_device
from engine.worker.unused_card import explain


def main() -> None:
    """Print the five lines."""
    device = pick_device()
    names = {
        "cuda": lambda: ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())),
        "mps": lambda: "Apple GPU",
        "cpu": lambda: f"{torch.get_num_threads()} threads",
    }
    print(torch.__version__)
    print(f"{device.type}: {names[device.type]()}")
    dtypes = {name: str(load(name, device).dtype).removeprefix("torch.") for name in BUILT_IN}
    print(f"{device.type} ({', '.join(f'{name}: {dtype}' for name, dtype in dtypes.items())})")
    print(missing_requirement(device) or "-")
    print(explain(device) or "-")


if __name__ == "__main__":
    main()
