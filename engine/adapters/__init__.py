"""What is added to a loaded model and removed again while it runs: LoRAs, ControlNets, image prompts."""

from __future__ import annotations

from engine.adapters.adapter_set import AdapterSet

__all__ = ["AdapterSet"]
