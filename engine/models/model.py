"""Model: a loaded checkpoint as the stream uses it, to encode, denoise, decode and turn prompts into conditions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from engine.compile.dispatch import CompiledModule
from engine.models.architectures import Architecture, Condition
from engine.models.autoencoders import make_codec
from engine.models.controlnet_inputs import ControlNetInputs
from engine.models.noise_schedule import NoiseSchedule
from engine.models.regional.base import TokenChoice
from engine.models.text_encoder_placement import PlacedEncoder


class Model:
    """A checkpoint on one device. Latents are scaled to the denoiser's range; pictures are (B, 3, H, W) in 0..1.

    ``autoencoder_name`` names the autoencoder that replaces the checkpoint's; it is empty if none does.
    """

    def __init__(
        self,
        name: str,
        architecture: Architecture,
        autoencoder: Any,
        noise_schedule: NoiseSchedule,
        autoencoder_name: str = "",
        placed_encoders: Sequence[PlacedEncoder] = (),
    ) -> None:
        self.name, self.architecture, self.autoencoder_name = name, architecture, autoencoder_name
        self.noise_schedule, self._placed_encoders = noise_schedule, placed_encoders
        self.device, self.dtype = architecture.device, architecture.dtype
        self.denoiser, self.autoencoder = architecture.denoiser, autoencoder
        self.codec = make_codec(autoencoder)
        self.encode, self.decode = self.codec.encode, self.codec.decode
        self.widen_autoencoder = self.codec.widen
        self.latent_channels, self.factor = self.codec.channels, self.codec.factor

    def encode_prompt(self, text: str) -> Condition:
        """Encode a text as one row of condition in the denoiser's type, which its encoder may not share."""
        return self._cast(self.architecture.encode_prompt(text))

    @property
    def encode_negative(self) -> Callable[[str], Condition] | None:
        """The same for a negative prompt, None where ``encode_prompt`` serves."""
        encode = self.architecture.encode_negative
        return None if encode is None else lambda text: self._cast(encode(text))

    def _cast(self, condition: Condition) -> Condition:
        return condition.map(lambda tensor: tensor.to(self.dtype) if tensor.is_floating_point() else tensor)

    @property
    def compiled_modules(self) -> list[CompiledModule]:
        """The modules that can be compiled, the slowest first."""
        regions = self.architecture.compiled_regions
        denoisers = [self.architecture.compiled_denoiser, *([regions] if regions is not None else [])]
        return [*denoisers, self.codec.decoder, self.codec.encoder]

    def make_room(self, needed_bytes: float) -> None:
        """Move large text encoders to the CPU where the device has less than ``needed_bytes`` free."""
        for encoder in self._placed_encoders:
            encoder.make_room(needed_bytes)

    @property
    def multiple(self) -> int:
        """Number that both sides of the working size are multiples of, in pixels."""
        return self.factor * self.architecture.patch

    def latent_shape(self, width: int, height: int) -> tuple[int, int, int]:
        """Return (C, h, w) of a picture's latent."""
        return self.latent_channels, height // self.factor, width // self.factor

    def token_count(self, width: int, height: int) -> int:
        """Return the number of a transformer's tokens for a picture; the shift of some schedules depends on it."""
        return (width // self.multiple) * (height // self.multiple)

    def denoise(
        self,
        x: Tensor,
        t: Tensor,
        condition: Condition,
        guidance: float = 0.0,
        controlnets: ControlNetInputs | None = None,
    ) -> Tensor:
        """Call the denoiser: x (rows, C, h, w), t (rows,), a condition of one row or ``rows`` → raw output, float32.

        ``guidance`` is the scale for a guidance-distilled model; 0 uses the model's default.
        """
        x = x.to(self.dtype, memory_format=torch.channels_last)
        return self.architecture.denoise(x, t, condition.rows(len(x)), guidance, controlnets).float()

    def denoise_tokens(
        self, x: Tensor, t: Tensor, condition: Condition, guidance: float, choice: TokenChoice
    ) -> tuple[Tensor, Tensor]:
        """Call the denoiser for some tokens of x (rows, C, h, w), see ``Architecture.denoise_tokens``.

        Return their outputs in float32, and the keys and values of what was computed.
        """
        x = x.to(self.dtype, memory_format=torch.channels_last)
        tokens, keys_values = self.architecture.denoise_tokens(x, t, condition.rows(len(x)), guidance, choice)
        return tokens.float(), keys_values

    def denoise_shallow(
        self, x: Tensor, t: Tensor, condition: Condition, guidance: float, deep: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Call a U-Net with the features ``deep`` in place of its deep levels, see ``Architecture.denoise_shallow``.

        Return the raw output in float32, and the features, which a later call may overwrite.
        """
        x = x.to(self.dtype, memory_format=torch.channels_last)
        output, features = self.architecture.denoise_shallow(x, t, condition.rows(len(x)), guidance, deep)
        return output.float(), features
