"""Loading: the pocket model, a diffusers folder, a single file or a hub name → one ``Model``."""

from __future__ import annotations

from engine.models.families import Condition
from engine.models.loading import load, pick_device, pick_dtype
from engine.models.model import Model
from engine.models.sources import POCKET, ModelError

__all__ = ["POCKET", "Condition", "Model", "ModelError", "load", "pick_device", "pick_dtype"]
