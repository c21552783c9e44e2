"""Codecs: pictures to latents and back, for KL, tiny and deep-compression autoencoders and FLUX.2's patched one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from engine.compile.dispatch import CompiledModule
from engine.compile.fusions import fuse_adjacent_convolutions, fuse_upsampling
from engine.models.precision import wider_dtype
from engine.runtime.device_lock import device_lock


class Encoder(nn.Module):
    """The encoder as a module from pictures to latents (a KL autoencoder's mean), fused on a CPU."""

    def __init__(self, autoencoder: Any) -> None:
        super().__init__()
        self.wrapped = autoencoder
        if autoencoder.device.type == "cpu":
            fuse_adjacent_convolutions(autoencoder.encoder)

    def forward(self, pictures: Tensor) -> Tensor:
        pictures = (pictures * 2 - 1).to(self.wrapped.dtype, memory_format=torch.channels_last)
        return _latents(self.wrapped.encode(pictures)).float()


class Decoder(nn.Module):
    """The decoder as a module from latents to pictures, fused on a CPU."""

    def __init__(self, autoencoder: Any) -> None:
        super().__init__()
        self.wrapped = autoencoder
        if autoencoder.device.type == "cpu":
            fuse_upsampling(autoencoder.decoder)
            fuse_adjacent_convolutions(autoencoder.decoder)

    def forward(self, latents: Tensor) -> Tensor:
        latents = latents.to(self.wrapped.dtype, memory_format=torch.channels_last)
        pictures = self.wrapped.decode(latents, return_dict=False)[0]
        return (pictures.float() * 0.5 + 0.5).clamp(0, 1)


class Codec:
    """An autoencoder with its latents scaled to the denoiser's range. Deterministic: the mean of a KL autoencoder.

    ``channels`` and ``factor``: a picture (B, 3, H, W) is encoded to a latent (B, channels, H/factor, W/factor).
    """

    def __init__(self, autoencoder: Any) -> None:
        self.encoder, self.decoder = (
            CompiledModule("encoder", Encoder(autoencoder)),
            CompiledModule("decoder", Decoder(autoencoder)),
        )
        config = autoencoder.config
        self.channels = int(config.latent_channels)
        blocks = config.get("block_out_channels") or config.get("encoder_block_out_channels") or ()
        self.factor = int(getattr(autoencoder, "spatial_compression_ratio", 0)) or 2 ** (len(blocks) - 1)
        self._scale = float(config.get("scaling_factor") or 1.0)
        self._shift = float(config.get("shift_factor") or 0.0)

    def encode(self, pictures: Tensor) -> Tensor:
        """Encode (B, 3, H, W) float32 in 0..1 to (B, channels, h, w) float32."""
        return self.scale_latents(self.encoder(pictures))

    def decode(self, latents: Tensor) -> Tensor:
        """Decode (B, channels, h, w) to (B, 3, H, W) float32 in 0..1."""
        return self.decoder(self.unscale_latents(latents))

    def widen(self) -> torch.dtype | None:
        """Convert the weights to the next wider type and return it; return None if they are in float32 already."""
        autoencoder: Any = self.encoder.module.wrapped
        dtype = wider_dtype(autoencoder.dtype, autoencoder.device)
        if dtype is None:
            return None
        with device_lock(autoencoder.device):
            autoencoder.to(dtype)
        for module in (self.encoder, self.decoder):
            module.mark_weights_changed()  # first: a backend that is being verified is for the old type
            module.invalidate_backends()
        return dtype

    def scale_latents(self, latents: Tensor) -> Tensor:
        """Scale the autoencoder's latents to the denoiser's range."""
        return (latents - self._shift) * self._scale

    def unscale_latents(self, latents: Tensor) -> Tensor:
        """Scale the denoiser's latents back to the autoencoder's range."""
        return latents / self._scale + self._shift


class PatchedCodec(Codec):
    """FLUX.2's codec: each 2×2 square of latents is packed into channels, normalized by the batch norm's statistics."""

    def __init__(self, autoencoder: Any) -> None:
        super().__init__(autoencoder)
        self.channels, self.factor = self.channels * 4, self.factor * 2
        self._mean = autoencoder.bn.running_mean.float().view(1, -1, 1, 1)
        self._deviation = (
            autoencoder.bn.running_var.float().view(1, -1, 1, 1) + autoencoder.config.batch_norm_eps
        ).sqrt()

    def scale_latents(self, latents: Tensor) -> Tensor:
        return (pixel_unshuffle(latents, 2) - self._mean) / self._deviation

    def unscale_latents(self, latents: Tensor) -> Tensor:
        return pixel_shuffle(latents * self._deviation + self._mean, 2)


def make_codec(autoencoder: Any) -> Codec:
    """Return the codec for an autoencoder's class."""
    is_patched = type(autoencoder).__name__ == "AutoencoderKLFlux2"
    return (PatchedCodec if is_patched else Codec)(autoencoder)


def _latents(encoded: Any) -> Tensor:
    """Return the latents of what ``encode`` returns, which differs by the autoencoder's class."""
    if hasattr(encoded, "latent_dist"):
        return encoded.latent_dist.mean
    return encoded.latents if hasattr(encoded, "latents") else encoded.latent
