"""Loading: the pocket model, a diffusers folder, a single file or a hub name → one ``Model``."""

from __future__ import annotations

from engine.models.loading import ModelError, load, pick_device, pick_dtype
from engine.models.model import Condition, Model

__all__ = ["Condition", "Model", "ModelError", "load", "pick_device", "pick_dtype"]
