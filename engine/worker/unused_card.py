"""A graphics card that is there and unused: one line for ``phosphene doctor``, and one at the start of the engine.

Tested with stand-ins for cards and drivers; not run with a card yet.
"""

from __future__ import annotations

import sys
import threading

import torch

from engine.shared.graphics_card import NVIDIA, GraphicsCard, find_card, parse_numbers
from engine.shared.torch_build import TorchBuild, explain_unused, runs


def explain(device: torch.device) -> str:
    """Return why this torch, which chose ``device``, does not use the machine's card, with the remedy; "" if it does.

    A card that torch shows, but that its build has no code for, counts as unused.
    """
    build = TorchBuild(torch.__version__, torch.version.cuda or "", torch.version.hip or "")
    if device.type == "cuda" and build.cuda:
        name, capability = torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device)
        card = GraphicsCard(NVIDIA, name, capability=capability)
        return (
            "" if runs(parse_numbers(build.cuda), card, sys.platform) else explain_unused(card, build, sys.executable)
        )
    return explain_unused(find_card(), build, sys.executable) if device.type == "cpu" else ""


def note_unused_card(requested: str, device: torch.device, notes: list[str]) -> threading.Thread | None:
    """Append the line of ``explain`` to ``notes`` on a thread, because a driver may take seconds to answer.

    Nothing is asked where the processor is ``requested``.
    """
    if requested == "cpu":
        return None

    def append() -> None:
        line = explain(device)
        if line:
            notes.append(line)

    thread = threading.Thread(target=append, name="unused-card", daemon=True)
    thread.start()
    return thread
