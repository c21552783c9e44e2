"""Pictures to latents and back, for every autoencoder: KL, tiny, deep-compression, and FLUX.2's patched one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from engine.compile.dispatch import CompiledModule
from engine.compile.fusions import fuse_adjacent_convolutions, fuse_upsampling


class Encoder(nn.Module):
    """The first half of an autoencoder as one function of pictures; of a KL autoencoder the mean. On a CPU fused where it can be."""

    def __init__(self, autoencoder: Any) -> None:
        super().__init__()
        self.wrapped = autoencoder
        if autoencoder.device.type == "cpu":
            fuse_adjacent_convolutions(autoencoder.encoder)

    def forward(self, pictures: Tensor) -> Tensor:
        pictures = (pictures * 2 - 1).to(self.wrapped.dtype, memory_format=torch.channels_last)
        return _latents(self.wrapped.encode(pictures)).float()


class Decoder(nn.Module):
    """The second half, as one function of latents. On a CPU fused where it can be."""

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
    """An autoencoder, its latents scaled to the denoiser's range. Deterministic: the mean of a KL autoencoder.

    ``channels`` and ``factor``: a picture (B, 3, H, W) becomes a latent (B, channels, H/factor, W/factor).
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
        """(B, 3, H, W) float32 in 0..1 → (B, channels, h, w) float32."""
        return self.normalised(self.encoder(pictures))

    def decode(self, latents: Tensor) -> Tensor:
        """(B, channels, h, w) → (B, 3, H, W) float32 in 0..1."""
        return self.decoder(self.plain(latents))

    def widen(self) -> bool:
        """Goes on in float32; False where it is in float32 already."""
        autoencoder: Any = self.encoder.module.wrapped
        if autoencoder.dtype == torch.float32:
            return False
        autoencoder.float()
        for part in (self.encoder, self.decoder):
            part.backends.clear()
            part.rejected.clear()
        return True

    def normalised(self, latents: Tensor) -> Tensor:
        """The autoencoder's latents as the denoiser knows them."""
        return (latents - self._shift) * self._scale

    def plain(self, latents: Tensor) -> Tensor:
        """The denoiser's latents as the autoencoder knows them."""
        return latents / self._scale + self._shift


class PatchedCodec(Codec):
    """FLUX.2's: each 2×2 square of latents becomes one of four times the channels, normalised by kept statistics."""

    def __init__(self, autoencoder: Any) -> None:
        super().__init__(autoencoder)
        self.channels, self.factor = self.channels * 4, self.factor * 2
        self._mean = autoencoder.bn.running_mean.float().view(1, -1, 1, 1)
        self._deviation = (
            autoencoder.bn.running_var.float().view(1, -1, 1, 1) + autoencoder.config.batch_norm_eps
        ).sqrt()

    def normalised(self, latents: Tensor) -> Tensor:
        return (pixel_unshuffle(latents, 2) - self._mean) / self._deviation

    def plain(self, latents: Tensor) -> Tensor:
        return pixel_shuffle(latents * self._deviation + self._mean, 2)


def codec(autoencoder: Any) -> Codec:
    """The codec of an autoencoder's class."""
    patched = type(autoencoder).__name__ == "AutoencoderKLFlux2"
    return (PatchedCodec if patched else Codec)(autoencoder)


def _latents(encoded: Any) -> Tensor:
    """What ``encode`` of any class answers: a distribution, several latents' field, or one latent's."""
    if hasattr(encoded, "latent_dist"):
        return encoded.latent_dist.mean
    return encoded.latents if hasattr(encoded, "latents") else encoded.latent
