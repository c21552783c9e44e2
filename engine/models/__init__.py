"""Models: those of the package, a diffusers folder, a single file or a hub name → one ``Model``."""

from __future__ import annotations

from engine.models.architectures import Condition
from engine.models.checkpoint import BUILT_IN, POCKET, POCKET_DIT
from engine.models.loading import load, pick_device
from engine.models.model import Model
from engine.models.model_error import ModelError
from engine.models.precision import pick_dtype

__all__ = ["BUILT_IN", "POCKET", "POCKET_DIT", "Condition", "Model", "ModelError", "load", "pick_device", "pick_dtype"]
