"""Depth maps as control images, by a depth-estimation model of transformers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from engine.adapters.base import check_fits, resolve
from engine.models.component_files import read_config
from engine.models.components import DEPTH_CLASSES, get_class, load_module
from engine.models.model_error import reading
from engine.models.placement import place
from engine.runtime.uploads import constant
from engine.shared.parameter import InvalidValue

#: ImageNet's statistics, on which the depth models' vision transformers were trained.
_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
#: Side of a vision transformer's patch, in pixels.
_PATCH_SIDE = 14


class DepthEstimator:
    """A depth-estimation model: near is bright."""

    def __init__(self, model: Any) -> None:
        self._model = model

    @torch.inference_mode()
    def __call__(self, pictures: Tensor) -> Tensor:
        """Return the depth of pictures (B, 3, H, W) in 0..1, each stretched over 0..1, (B, 3, H, W)."""
        mean, deviation = (constant(v, pictures.device, pictures.dtype).view(1, 3, 1, 1) for v in (_MEAN, _DEVIATION))
        side = _PATCH_SIDE * max(1, min(pictures.shape[-2:]) // _PATCH_SIDE)
        scaled = F.interpolate((pictures - mean) / deviation, (side, side), mode="bilinear", antialias=True)
        depth = self._model(scaled.to(self._model.dtype)).predicted_depth[:, None].float()
        depth = F.interpolate(depth, pictures.shape[-2:], mode="bicubic")
        low, high = depth.amin((1, 2, 3), keepdim=True), depth.amax((1, 2, 3), keepdim=True)
        return ((depth - low) / (high - low).clamp(min=1e-6)).clamp(0, 1).expand(-1, 3, -1, -1)


def read_depth_estimator(name: str, unet: Any) -> DepthEstimator:
    """Load the depth model in a transformers folder or under a cached hub name. Raises InvalidValue."""
    what = f"depth model {name}"
    with reading(what):
        folder = resolve(name, "controlnets", "depth model", hub=True)
        check_fits(folder, unet, what)
        kind = str(read_config(folder / "config.json").get("model_type"))
        if kind not in DEPTH_CLASSES:
            raise InvalidValue(f"{what}: {kind[:80]} is not supported; use one of {', '.join(DEPTH_CLASSES)}")
        model = load_module(get_class("transformers", DEPTH_CLASSES[kind], what), folder, unet.dtype, what)
        return DepthEstimator(place(model, unet.device))
