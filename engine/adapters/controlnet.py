"""ControlNet: a picture of edges, light or depth steers the layout (Zhang et al., arXiv 2302.05543). Several at once, each live."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.nn import functional as F

from engine.image.ops import luminance
from engine.shared.parameter import InvalidValue

SLOTS = 3


@dataclass(frozen=True)
class ControlSetting:
    """One control as the performer has it: how strong, and over which share of the steps, 0 to 1."""

    weight: float = 1.0
    start: float = 0.0
    end: float = 1.0

    def at(self, position: int, steps: int) -> float:
        """The weight at step ``position`` of ``steps``, as diffusers counts: on from ``start`` until ``end`` is passed."""
        return self.weight if position / steps >= self.start and (position + 1) / steps <= self.end else 0.0


def read(path: Path, unet: Any) -> Any:
    """The ControlNet in a diffusers folder or an original-format file. Raises BadValue where it is none, or none for this U-Net."""
    from diffusers import ControlNetModel

    try:
        if path.is_dir():
            net: Any = ControlNetModel.from_pretrained(path, torch_dtype=unet.dtype, use_safetensors=True)
        elif path.suffix == ".safetensors":
            net = ControlNetModel.from_single_file(str(path), torch_dtype=unet.dtype)
        else:
            raise InvalidValue(f"ControlNet {path.name}: give a diffusers folder or a .safetensors file")
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise InvalidValue(f"ControlNet {path.name} cannot be read: {str(error).splitlines()[0]}") from None
    for name in ("cross_attention_dim", "block_out_channels", "in_channels"):
        theirs, ours = net.config[name], unet.config[name]
        if (list(theirs) if isinstance(theirs, list | tuple) else theirs) != (
            list(ours) if isinstance(ours, list | tuple) else ours
        ):
            raise InvalidValue(
                f"ControlNet {path.name} is for another model: its {name} is {theirs}, this model's is {ours}"
            )
    return net.to(unet.device, memory_format=torch.channels_last).requires_grad_(False).eval()


def _gradients(pictures: Tensor) -> tuple[Tensor, Tensor]:
    """Sobel gradients of the smoothed brightness, (B, 1, H, W) each, about 0..1 for a hard edge."""
    grey = luminance(pictures)[:, :1]
    taps = grey.new_tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16
    grey = F.conv2d(F.pad(grey, (2, 2, 2, 2), mode="replicate"), (taps[:, None] * taps).view(1, 1, 5, 5))
    sobel = grey.new_tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]]) / 4
    both = F.conv2d(F.pad(grey, (1, 1, 1, 1), mode="replicate"), torch.stack([sobel, sobel.T])[:, None])
    return both[:, :1], both[:, 1:]


def soft_edge(pictures: Tensor) -> Tensor:
    """Edges with their strength, white on black, (B, 3, H, W): the size of the gradient, as a stand-in for a trained edge detector."""
    dx, dy = _gradients(pictures)
    return (2.0 * torch.hypot(dx, dy)).clamp(0, 1).expand(-1, 3, -1, -1)


def canny(pictures: Tensor, low: float = 0.1, high: float = 0.2) -> Tensor:
    """Thin edges, white on black, (B, 3, H, W): Canny's three stages (1986) on the device, with a fixed number of hysteresis rounds."""
    dx, dy = _gradients(pictures)
    size = torch.hypot(dx, dy)
    # Non-maximum suppression along the nearest of four directions.
    angle = torch.atan2(dy, dx) * (4 / torch.pi)
    sector = angle.round().remainder(4)
    around = F.pad(size, (1, 1, 1, 1))
    height, width = size.shape[-2:]

    def beside(y: int, x: int) -> Tensor:
        return around[..., 1 + y : 1 + y + height, 1 + x : 1 + x + width]

    thin = torch.zeros_like(size, dtype=torch.bool)
    for number, (y, x) in enumerate([(0, 1), (1, 1), (1, 0), (1, -1)]):
        thin |= (sector == number) & (size >= beside(y, x)) & (size > beside(-y, -x))
    weak, strong = thin & (size > low), thin & (size > high)
    for _ in range(8):
        strong = weak & (F.max_pool2d(strong.to(size.dtype), 3, 1, 1) > 0)
    return strong.to(size.dtype).expand(-1, 3, -1, -1)


def tile(pictures: Tensor) -> Tensor:
    """The picture without its fine detail, (B, 3, H, W), as tile ControlNets were trained to refine."""
    height, width = pictures.shape[-2:]
    small = F.interpolate(pictures, (max(1, height // 8), max(1, width // 8)), mode="area")
    return F.interpolate(small, (height, width), mode="bicubic").clamp(0, 1)


#: What a control picture is made of the input by; "picture" and "source" are taken as they are, "depth" needs a model.
MAPS: dict[str, Callable[[Tensor], Tensor]] = {
    "canny": canny,
    "softedge": soft_edge,
    "luminance": luminance,
    "tile": tile,
}


class Depth:
    """A depth-estimation model: near is bright."""

    def __init__(self, model: Any) -> None:
        self._model = model

    @torch.inference_mode()
    def __call__(self, pictures: Tensor) -> Tensor:
        """(B, 3, H, W) in 0..1 → depth, each picture's stretched over 0..1, (B, 3, H, W)."""
        mean, deviation = (
            pictures.new_tensor(v).view(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
        )
        side = 14 * max(1, min(pictures.shape[-2:]) // 14)  # whole patches of the vision transformers
        scaled = F.interpolate((pictures - mean) / deviation, (side, side), mode="bilinear", antialias=True)
        depth = self._model(scaled.to(self._model.dtype)).predicted_depth[:, None].float()
        depth = F.interpolate(depth, pictures.shape[-2:], mode="bicubic")
        low, high = depth.amin((1, 2, 3), keepdim=True), depth.amax((1, 2, 3), keepdim=True)
        return ((depth - low) / (high - low).clamp(min=1e-6)).clamp(0, 1).expand(-1, 3, -1, -1)


def read_depth(name: str, unet: Any) -> Depth:
    """The depth model in a transformers folder or under a cached hub name. Raises BadValue."""
    from transformers import AutoModelForDepthEstimation

    try:
        model = AutoModelForDepthEstimation.from_pretrained(
            Path(name).expanduser(), dtype=unet.dtype, use_safetensors=True
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise InvalidValue(f"depth model {name} cannot be read: {str(error).splitlines()[0]}") from None
    return Depth(model.to(unet.device).requires_grad_(False).eval())
