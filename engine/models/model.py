"""What the stream needs of a checkpoint: encode, denoise, decode, and prompts to conditions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from engine.compile.dispatch import CompiledModule
from engine.models.architectures import Architecture, Condition
from engine.models.autoencoders import codec
from engine.models.controls import Controls
from engine.models.noise_schedule import NoiseSchedule


class Model:
    """A loaded checkpoint on one device. Latents are scaled to the denoiser's range; pictures are (B, 3, H, W) in 0..1.

    ``autoencoder_name`` is that of another autoencoder than its own.
    """

    def __init__(
        self, name: str, family: Architecture, autoencoder: Any, noising: NoiseSchedule, autoencoder_name: str = ""
    ) -> None:
        self.name, self.family, self.noising, self.autoencoder_name = name, family, noising, autoencoder_name
        self.device, self.dtype = family.device, family.dtype
        self.denoiser, self.autoencoder, self.encode_prompt = family.denoiser, autoencoder, family.encode_prompt
        self.codec = codec(autoencoder)
        self.encode, self.decode, self.widen = self.codec.encode, self.codec.decode, self.codec.widen
        self.latent_channels, self.factor = self.codec.channels, self.codec.factor

    @property
    def parts(self) -> list[CompiledModule]:
        """What an accelerator may run, the slowest first."""
        return [self.family.run, self.codec.decoder, self.codec.encoder]

    @property
    def multiple(self) -> int:
        """Both sides of the working size are multiples of this."""
        return self.factor * self.family.patch

    def latent_shape(self, width: int, height: int) -> tuple[int, int, int]:
        """(C, h, w) of a picture's latent."""
        return self.latent_channels, height // self.factor, width // self.factor

    def tokens(self, width: int, height: int) -> int:
        """How many tokens a transformer sees of a picture; some schedules bend with it."""
        return (width // self.multiple) * (height // self.multiple)

    def denoise(
        self, x: Tensor, t: Tensor, condition: Condition, guidance: float = 0.0, controls: Controls | None = None
    ) -> Tensor:
        """One denoiser call: x (rows, C, h, w), t (rows,), a condition of one row or ``rows`` → the raw output, float32.

        ``guidance`` is the scale for a model that has it built in; 0 takes the one that it was made for.
        """
        x = x.to(self.dtype, memory_format=torch.channels_last)
        return self.family.denoise(x, t, condition.rows(len(x)), guidance, controls).float()
