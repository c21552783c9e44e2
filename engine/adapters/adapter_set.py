"""Everything that is added to one model while it runs: a list of adapters, and the attention that they share."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from contextlib import nullcontext

from engine.adapters.attention import AttentionState, KeyValueMemory, install_stream_attention
from engine.adapters.base import Adapter
from engine.adapters.controlnet import ControlNetAdapter
from engine.adapters.ip_adapter import ImagePromptAdapter
from engine.adapters.lora import LoraAdapter
from engine.compile.dispatch import CompiledModule
from engine.models import Model
from engine.runtime.device_lock import device_lock, hold_device_lock
from engine.shared.frame import Frame
from engine.shared.settings import AdapterSettings


class AdapterSet:
    """The adapters of ``model``. ``update`` belongs to the frame loop; files are read on other threads.

    A ``blocking`` set waits for files in ``update``, for offline rendering; a live one never does.
    """

    def __init__(self, model: Model, blocking: bool = False) -> None:
        # A blocking set waits for threads that need the device.
        self.device_lock = nullcontext() if blocking else device_lock(model.device)
        self.device = model.device
        self.lora = LoraAdapter(model, blocking)
        self.controlnet = ControlNetAdapter(model, blocking)
        self.image_prompt = ImagePromptAdapter(model, blocking)
        self._attention = AttentionState()
        if model.architecture.supports_controlnet:
            self._attention = install_stream_attention(model.denoiser)
            model.architecture.compiled_denoiser.is_unmodified = self._attention.is_plain

    def __iter__(self) -> Iterator[Adapter]:
        return iter((self.lora, self.controlnet, self.image_prompt))

    @property
    def compiled_modules(self) -> list[CompiledModule]:
        """What an accelerator may run."""
        return list(self.controlnet.nets.values())

    @property
    def busy(self) -> bool:
        """Whether something is being loaded."""
        return any(adapter.busy for adapter in self)

    @hold_device_lock
    def update(self, settings: AdapterSettings, reference: Frame | None = None) -> None:
        """Follow ``settings``; ``reference`` is the newest frame of the second source."""
        for adapter in self:
            adapter.update(settings, reference)

    def settle(self, settings: AdapterSettings, reference: Frame | None = None) -> None:
        """Follow ``settings`` and wait until all that they ask for is installed or has failed."""
        self.update(settings, reference)
        while self.busy:
            for adapter in self:
                adapter.settle()
            self.update(settings, reference)

    def begin_call(self, memory: KeyValueMemory, rows: Hashable, negatives: int) -> None:
        """Prepare the attention for a denoiser call on this thread.

        ``memory`` is its stream's, ``rows`` describes the arrangement of its rows, of which the last ``negatives``
        carry the negative prompt.
        """
        state = self._attention
        state.memory, state.negatives = memory, negatives
        state.prompt, state.weight = self.image_prompt.prompt, self.image_prompt.weight
        memory.begin_call((rows, negatives))

    def take_notes(self) -> list[str]:
        """Return lines for the user on what could not be loaded since the last call."""
        return [note for adapter in self for note in adapter.take_notes()]

    def close(self) -> None:
        """End the loaders' threads."""
        for adapter in self:
            adapter.close()
