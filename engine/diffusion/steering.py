"""What steers the denoiser and may take time to load: adapters and prompts, following the newest snapshot."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from engine.adapters import AdapterSet
from engine.adapters.attention import KeyValueMemory
from engine.diffusion.conditioning import Conditioner
from engine.diffusion.prompt_encoder import TextStyle
from engine.models import Model
from engine.runtime.device_lock import device_lock, hold_device_lock
from engine.runtime.handover import on_side_stream, side_stream
from engine.shared.frame import Frame
from engine.shared.snapshot import Snapshot


class Steering:
    """Adapters and prompts of one stream, and its attention's ``memory`` of earlier frames.

    ``shared_adapters`` are those of a running stream on the same model, which keeps steering them until this one leads.
    A ``blocking`` one waits for files and encodes prompts at once, for offline rendering. ``snapshot_number`` is that
    of the newest snapshot that is wholly in effect.
    """

    def __init__(self, model: Model, shared_adapters: AdapterSet | None = None, blocking: bool = False) -> None:
        # A blocking stream waits for threads that need the device, and nothing runs beside it.
        self.device_lock = nullcontext() if blocking else device_lock(model.device)
        self.adapters, self.memory = shared_adapters or AdapterSet(model, blocking), KeyValueMemory()
        encode, encode_negative = model.encode_prompt, model.encode_negative
        self.conditioner = Conditioner(
            on_side_stream(model.device, encode),
            on_side_stream(model.device, encode_negative) if encode_negative is not None else None,
            self._apply_style,
            blocking,
            self.device_lock,
        )
        self.leads = shared_adapters is None
        self.snapshot_number = 0
        self._snapshot = Snapshot()
        self._settled = False

    def apply(self, snapshot: Snapshot, second: Frame | None) -> None:
        """Follow ``snapshot`` from now on. ``second`` is the newest frame of the second source."""
        self._snapshot, self._settled = snapshot, False
        self.follow(second)

    @hold_device_lock
    def follow(self, second: Frame | None) -> None:
        """Take what has become ready since: adapters, then the prompts as the adapters read them."""
        if self._settled:
            return
        settings = self._snapshot.adapters
        if self.leads:
            self.adapters.update(settings, second)
        self._condition()
        if self.conditioner.settled and not self.adapters.busy:
            self.snapshot_number = self._snapshot.number
            self._settled = not settings.image_prompt.follows_source  # that one keeps changing

    def settle(self, second: Frame | None) -> None:
        """Wait until everything that the snapshot asks for is in effect, or has failed."""
        if self.leads:
            self.adapters.settle(self._snapshot.adapters, second)
        self._condition(encode_now=True)
        self.follow(second)

    def lead(self, previous: Steering) -> None:
        """Take over from the stream that was shown until now."""
        previous.leads = previous.leads and previous.adapters is not self.adapters
        self.leads, self._settled = True, False

    def close(self) -> None:
        """End the prompt thread. The adapters may belong to another stream too: they are closed by the last one."""
        self.conditioner.close()

    @contextmanager
    def _apply_style(self, style: TextStyle) -> Iterator[None]:
        """Put the text encoders into a style, on the CUDA stream on which they encode."""
        with side_stream(self.adapters.device), self.adapters.lora.text_encoder_loras(style):
            yield

    @hold_device_lock
    def _condition(self, encode_now: bool = False) -> None:
        style = self.adapters.lora.text_style(self._snapshot.adapters)
        self.conditioner.update(self._snapshot.looks, style, encode_now)
