"""ControlNet: an image of edges, light or depth steers the layout (Zhang et al., arXiv 2302.05543). Several at once."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from engine.adapters.async_loader import AsyncLoader
from engine.adapters.base import Adapter, check_fits, resolve
from engine.adapters.depth import DepthEstimator, read_depth_estimator
from engine.compile.dispatch import CompiledModule
from engine.image.control_maps import CONTROL_MAPS
from engine.models import Model
from engine.models.component_files import read_shapes
from engine.models.components import load_module
from engine.models.controlnet_inputs import ControlNetInputs
from engine.models.model_error import reading
from engine.models.placement import check_finite, place
from engine.runtime.handover import on_side_stream
from engine.runtime.memo import Memo
from engine.shared.frame import Frame
from engine.shared.parameter import InvalidValue
from engine.shared.settings import AdapterSettings, ControlNetSettings

SLOTS = 3


class LoadedNets(NamedTuple):
    """The ControlNets by their number, 1 to 3, and the depth estimator for their control images."""

    nets: Mapping[int, CompiledModule]
    depth: DepthEstimator | None = None


@dataclass(frozen=True)
class ControlledRows:
    """What one slot brings to a denoiser call: its control images by number, its step of how many, and its rows."""

    images: Mapping[int, Tensor]
    position: int
    steps: int
    count: int


class ControlNetAdapter(Adapter):
    """The ControlNets of ``/control/1`` to ``/control/3``."""

    loader: AsyncLoader[tuple[str, ...], LoadedNets]

    def __init__(self, model: Model, blocking: bool) -> None:
        self._model = model
        self._loaded = LoadedNets({})
        self._settings: dict[int, ControlNetSettings] = {}
        self._cache: dict[str, CompiledModule] = {}
        self._row_weights: Memo[Tensor] = Memo()
        self.loader = AsyncLoader(on_side_stream(model.device, self._load), ("",) * (SLOTS + 1), blocking)

    @property
    def nets(self) -> Mapping[int, CompiledModule]:
        """The loaded ControlNets by their number, 1 to 3."""
        return self._loaded.nets

    @property
    def depth_estimator(self) -> DepthEstimator | None:
        """What draws depth maps, None where none is loaded."""
        return self._loaded.depth

    def update(self, settings: AdapterSettings, reference: Frame | None) -> None:
        files = tuple(slot.file for slot in settings.controlnets)
        loaded = self.loader.poll((*files, settings.depth_model))
        if loaded is not None:
            self._loaded = loaded
        self._settings = {number: settings.controlnets[number - 1] for number in self.nets}

    def control_images(self, pictures: Tensor, second: Tensor | None) -> dict[int, Tensor]:
        """Return the control image of each ControlNet with a weight, (B, 3, H, W) in 0..1.

        They are drawn from the input ``pictures`` (B, 3, H, W) or are the second source's picture (1, 3, H, W).
        """
        drawn: dict[str, Tensor] = {}
        for slot in self._settings.values():
            if slot.weight != 0.0 and slot.image not in drawn:
                image = self._control_image(slot.image, pictures, second)
                if image is not None:
                    drawn[slot.image] = image
        return {number: drawn[slot.image] for number, slot in self._settings.items() if slot.image in drawn}

    def controls(self, rows: Sequence[ControlledRows]) -> ControlNetInputs | None:
        """Return the controls of a denoiser call for the rows in flight; None where no ControlNet has a weight."""
        weights = [
            {number: slot.weight_at(row.position, row.steps) for number, slot in self._settings.items()} for row in rows
        ]
        return build_controls(self.nets, rows, weights, self._row_weights)

    def _control_image(self, name: str, pictures: Tensor, second: Tensor | None) -> Tensor | None:
        if name == "source":
            return None if second is None else second.expand(len(pictures), -1, -1, -1)
        if name == "depth":
            return None if self._loaded.depth is None else self._loaded.depth(pictures)
        return CONTROL_MAPS[name](pictures) if name in CONTROL_MAPS else pictures

    def _load(self, names: tuple[str, ...], report: Callable[[str], None]) -> LoadedNets:
        *files, depth = names
        nets = {}
        for number, file in enumerate(files, 1):
            try:
                if file:
                    nets[number] = self._load_one(file)
            except InvalidValue as error:  # the other slots keep working
                report(str(error))
        self._cache = {file: self._cache[file] for file in files if file in self._cache}
        estimator = None
        try:
            estimator = read_depth_estimator(depth, self._model.denoiser) if depth else None
        except InvalidValue as error:  # the ControlNets keep working
            report(str(error))
        return LoadedNets(nets, estimator)

    def _load_one(self, file: str) -> CompiledModule:
        architecture = self._model.architecture
        if not architecture.supports_controlnet:
            raise InvalidValue(f"ControlNet {file}: not supported for a {architecture.title} model")
        if file not in self._cache:
            with reading(f"ControlNet {file}"):
                net = read_controlnet(resolve(file, "controlnets", "ControlNet", hub=True), self._model.denoiser)
                self._cache[file] = CompiledModule("control", net)
        return self._cache[file]


def build_controls(
    nets: Mapping[int, Any],
    rows: Sequence[ControlledRows],
    weights: Sequence[Mapping[int, float]],
    memo: Memo[Tensor] | None = None,
) -> ControlNetInputs | None:
    """Return the controls of one call: the nets that any row uses, with zeros for rows that do not use them.

    ``memo`` is for the weights of the rows, which are the same in most calls.
    """
    memo = memo or Memo()
    used = [
        n for n in nets if any(by_net.get(n) and n in row.images for row, by_net in zip(rows, weights, strict=True))
    ]
    if not used:
        return None
    images, scales = [], []
    for n in used:
        like = next(row.images[n] for row in rows if n in row.images)
        images.append(torch.cat([row.images.get(n, like.new_zeros(row.count, *like.shape[1:])) for row in rows]))
        by_row = tuple(
            (row.count, by_net.get(n, 0.0) if n in row.images else 0.0)
            for row, by_net in zip(rows, weights, strict=True)
        )
        scales.append(memo.get(partial(_fill_rows, by_row, like.device), by_row, like.device))
    return ControlNetInputs(tuple(nets[n] for n in used), tuple(images), tuple(scales))


def _fill_rows(by_row: Sequence[tuple[int, float]], device: torch.device) -> Tensor:
    """Return (rows, 1, 1, 1): each value as often as it counts, filled on the device, so that nothing is uploaded."""
    return torch.cat(
        [torch.full((count, 1, 1, 1), value, dtype=torch.float32, device=device) for count, value in by_row]
    )


def read_controlnet(path: Path, unet: Any) -> Any:
    """Load the ControlNet in a diffusers folder or an original-format file.

    Raises InvalidValue where the file is not a ControlNet, or is one for another U-Net.
    """
    from diffusers import ControlNetModel

    what = f"ControlNet {path.name}"
    with reading(what):
        if path.is_dir():
            check_fits(path, unet, what)
            net: Any = load_module(ControlNetModel, path, unet.dtype, what)
        elif path.suffix == ".safetensors":
            net = _read_single_file(path, unet)
        else:
            raise InvalidValue(f"{what}: use a diffusers folder or a .safetensors file")
    for name in ("cross_attention_dim", "block_out_channels", "in_channels"):
        net_value, model_value = (_as_list(module.config[name]) for module in (net, unet))
        if net_value != model_value:
            raise InvalidValue(
                f"ControlNet {path.name} is for another model: its {name} is {net_value}, this model's is {model_value}"
            )
    check_finite(net, what)
    with reading(what):
        return place(net, unet.device, torch.channels_last)


def _read_single_file(path: Path, unet: Any) -> Any:
    """Load an original-format file. Its config is that of a ControlNet for this U-Net: no other one would fit."""
    from diffusers import ControlNetModel

    read_shapes(path)
    check_fits(path, unet, f"ControlNet {path.name}")
    with torch.device("meta"):
        template = ControlNetModel.from_unet(unet, load_weights_from_unet=False)
    with tempfile.TemporaryDirectory(prefix="phosphene-controlnet-") as folder:
        template.save_config(folder)
        return ControlNetModel.from_single_file(str(path), config=folder, torch_dtype=unet.dtype, local_files_only=True)


def _as_list(value: Any) -> Any:
    return list(value) if isinstance(value, list | tuple) else value
