"""LoRA: several low-rank adapters on one model at once, each weight live (Hu et al., arXiv 2106.09685).

W' = W + Σᵢ wᵢ·(αᵢ/rᵢ)·Bᵢ·Aᵢ. The adapters of a layer are stacked along their ranks into one product.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from engine.adapters.async_loader import AsyncLoader
from engine.adapters.base import Adapter, check_fits, check_room, resolve
from engine.adapters.lora_file import Layer, LoraUpdates, LowRankUpdate, get_layer, read_lora
from engine.models import Model
from engine.models.model_error import reading
from engine.runtime.handover import on_side_stream
from engine.runtime.uploads import upload
from engine.shared.frame import Frame
from engine.shared.parameter import InvalidValue
from engine.shared.settings import AdapterSettings

SLOTS = 4
#: Steps per unit of weight at which prompts are encoded again: a fader sends hundreds of values.
TEXT_WEIGHT_STEPS = 20
#: What changes how a text is encoded: the files on the text encoders and their weights; () for none.
TextStyle = tuple[Hashable, ...]


class MergedLoras:
    """LoRAs merged into the weights of ``components``, in place.

    A frame costs what it costs without them, and nothing is compiled again. ``on_change`` is called before and after
    the weights change: another thread that reads them meanwhile can tell. All methods belong to one thread.
    """

    def __init__(self, components: Mapping[str, nn.Module], on_change: Callable[[], None] = lambda: None) -> None:
        self._components, self._on_change = components, on_change
        self._layers: list[_MergedLayer] = []
        self._ranks: dict[tuple[tuple[int, ...], torch.device], Tensor] = {}  # by a layer's key, on its device
        self.weights: tuple[float, ...] = ()

    @torch.inference_mode()
    def install(self, loras: Sequence[LoraUpdates | None]) -> None:
        """Replace the LoRAs by ``loras``, all at weight 0; None leaves a slot empty."""
        self._on_change()
        for merged in self._layers:
            merged.restore()
        self._layers, self.weights = [], ()
        self._on_change()
        self._ranks.clear()
        for component, name in dict.fromkeys(key for lora in loras if lora for key in lora):
            layer = get_layer(self._components[component], name)
            assert layer is not None
            updates = {i: lora[component, name] for i, lora in enumerate(loras) if lora and (component, name) in lora}
            merged = _MergedLayer(layer, updates)
            if merged.key not in self._ranks:
                self._ranks[merged.key] = upload(*merged.key, torch.int64)
            self._layers.append(merged)

    @torch.inference_mode()
    def set_weights(self, weights: Sequence[float]) -> None:
        """Set the weight of each slot. All at 0 restores the model's own weights exactly."""
        if tuple(weights) != self.weights:
            self._on_change()
            scales = {key: _fill(weights, slots.device)[slots] for key, slots in self._ranks.items()}
            for merged in self._layers:
                merged.set_weights(scales[merged.key])
            self._on_change()
        self.weights = tuple(weights)


def _fill(weights: Sequence[float], device: torch.device) -> Tensor:
    """Return the weights of the slots, (slots,) float32, filled on the device, so that nothing is uploaded."""
    return torch.stack([torch.full((), weight, dtype=torch.float32, device=device) for weight in weights])


class _MergedLayer:
    """One layer, its updates stacked along their ranks, and its weight without them."""

    def __init__(self, layer: Layer, updates: Mapping[int, LowRankUpdate]) -> None:
        self._weight = layer.weight
        self._base = layer.weight.detach().flatten(1).clone()
        device = self._base.device  # a text encoder may have moved since the file was read
        self._A = torch.cat([update.A.flatten(1) for update in updates.values()]).to(device)
        self._B = torch.cat([update.B.flatten(1) for update in updates.values()], 1).to(device)
        #: The slot of each rank, and where the layer is: most layers share it.
        self.key = (tuple(slot for slot, update in updates.items() for _ in range(len(update.A))), layer.weight.device)

    def set_weights(self, scales: Tensor) -> None:
        """Set the weight of each rank, (ranks,) float32."""
        scaled = self._B * scales.to(self._B.dtype)
        self._weight.copy_(torch.addmm(self._base, scaled, self._A).view(self._weight.shape))

    def restore(self) -> None:
        self._weight.copy_(self._base.view(self._weight.shape))


class LoraAdapter(Adapter):
    """The LoRAs of ``/lora/1`` to ``/lora/4``, on the denoiser and on the text encoders."""

    loader: AsyncLoader[tuple[str, ...], list[LoraUpdates | None]]

    def __init__(self, model: Model, blocking: bool) -> None:
        self._model, architecture = model, model.architecture
        modules = {name: part for name, part in architecture.components.items() if isinstance(part, nn.Module)}
        self._denoiser = {architecture.denoiser_component: modules[architecture.denoiser_component]}
        self._text_encoders = {name: part for name, part in modules.items() if name.startswith("text_encoder")}
        self.merged = MergedLoras(self._denoiser, architecture.mark_weights_changed)
        self._cache: dict[tuple[str, float], LoraUpdates] = {}
        self.loader = AsyncLoader(on_side_stream(model.device, self._load), ("",) * SLOTS, blocking)
        self._files: tuple[str, ...] = ("",) * SLOTS
        self._on_text: list[LoraUpdates | None] = []
        self._text_merged = MergedLoras(self._text_encoders)
        self._text_files: tuple[str, ...] = ()
        self._text_lock = threading.Lock()

    def update(self, settings: AdapterSettings, reference: Frame | None) -> None:
        files = tuple(slot.file for slot in settings.loras)
        loras = self.loader.poll(files)
        if loras is not None:
            self.merged.install(_select(loras, self._denoiser))
            self._files, self._on_text = files, _select(loras, self._text_encoders)
        self.merged.set_weights([slot.weight for slot in settings.loras])

    def text_style(self, settings: AdapterSettings) -> TextStyle:
        """Return what of the LoRAs changes how prompts are read; () where none touches a text encoder."""
        if not any(self._on_text):
            return ()
        weights = (round(slot.weight * TEXT_WEIGHT_STEPS) / TEXT_WEIGHT_STEPS for slot in settings.loras)
        return (self._files, tuple(weights))

    @contextmanager
    def text_encoder_loras(self, style: TextStyle) -> Iterator[None]:
        """Apply the LoRAs of ``style`` to the text encoders, on the thread that encodes; one thread at a time."""
        files: Any
        weights: Any
        files, weights = style or ((), ())
        with self._text_lock:
            if files != self._text_files:
                self._text_merged.install(self._on_text if files else [])
                self._text_files = files
            self._text_merged.set_weights(weights)
            yield

    def _load(self, files: tuple[str, ...], report: Callable[[str], None]) -> list[LoraUpdates | None]:
        loras: list[LoraUpdates | None] = []
        for file in files:
            try:
                loras.append(self._load_one(file) if file else None)
            except InvalidValue as error:  # the other slots keep working
                loras.append(None)
                report(str(error))
        # Drop what no slot asks for any more: a long night asks for many.
        self._cache = {key: lora for key, lora in self._cache.items() if any(lora is used for used in loras)}
        return loras

    def _load_one(self, file: str) -> LoraUpdates:
        architecture = self._model.architecture
        if not architecture.lora_mixin:
            raise InvalidValue(f"LoRA {file}: a {architecture.title} model takes none")
        with reading(f"LoRA {file}"):
            path = resolve(file, "loras", "LoRA")
            key = (str(path), path.stat().st_mtime)
            if key not in self._cache:
                check_fits(path, self._model.denoiser, f"LoRA {file}")
                components = self._denoiser | self._text_encoders
                updates = read_lora(path, architecture.lora_mixin, components, self._model.denoiser.config)
                # Each layer that it changes is stored as it is without it.
                originals = (get_layer(components[component], name) for component, name in updates)
                needed = sum(layer.weight.nbytes for layer in originals if layer is not None)
                check_room(needed, self._model.device, f"LoRA {file}")
                self._cache[key] = updates
            return self._cache[key]


def _select(loras: Sequence[LoraUpdates | None], components: Mapping[str, Any]) -> list[LoraUpdates | None]:
    """Return the updates of ``components`` alone; None for a slot without any."""
    return [lora and ({key: update for key, update in lora.items() if key[0] in components} or None) for lora in loras]
