"""Environment of the hub library: no telemetry, and no network with ``--offline``. Set it before the library loads."""

from __future__ import annotations

import os


def configure_hub(offline: bool) -> None:
    """Set the variables that the libraries read once, when they are imported. Processes started later inherit them."""
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    if offline:
        os.environ["HF_HUB_OFFLINE"] = os.environ["TRANSFORMERS_OFFLINE"] = "1"
