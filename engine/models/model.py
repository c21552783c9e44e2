"""What the stream needs of a checkpoint: encode, denoise, decode, and prompts to conditions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from engine.schedule import Noising


@dataclass(frozen=True)
class Condition:
    """A prompt as the denoiser takes it: ``tokens`` (1, length, width), and ``pooled`` (1, width) where the model has it."""

    tokens: Tensor
    pooled: Tensor | None = None


class Model:
    """A loaded checkpoint on one device. Latents are scaled to the denoiser's range; pictures are (B, 3, H, W) in -1..1."""

    def __init__(
        self,
        name: str,
        denoiser: Any,
        autoencoder: Any,
        encode_prompt: Callable[[str], Condition],
        noising: Noising,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.name, self.noising, self.device, self.dtype = name, noising, device, dtype
        self.denoiser, self.autoencoder, self.encode_prompt = denoiser, autoencoder, encode_prompt
        config = autoencoder.config
        self.latent_channels = int(config.latent_channels)
        blocks = config.get("block_out_channels") or config.encoder_block_out_channels
        self.factor = 2 ** (len(blocks) - 1)
        self._scale = float(config.get("scaling_factor") or 1.0)
        self._shift = float(config.get("shift_factor") or 0.0)
        self._tiny = type(autoencoder).__name__ == "AutoencoderTiny"
        self._guidance_embedding = self._embed_guidance(7.0)

    def latent_shape(self, width: int, height: int) -> tuple[int, int, int]:
        """(C, h, w) of a picture's latent."""
        return self.latent_channels, height // self.factor, width // self.factor

    def encode(self, pictures: Tensor) -> Tensor:
        """(B, 3, H, W) in -1..1 → (B, C, h, w) float32. Deterministic: the mean of a KL autoencoder."""
        pictures = pictures.to(self.dtype, memory_format=torch.channels_last)
        encoded = self.autoencoder.encode(pictures)
        latents = encoded.latents if self._tiny else encoded.latent_dist.mean
        return (latents.float() - self._shift) * self._scale

    def decode(self, latents: Tensor) -> Tensor:
        """(B, C, h, w) → (B, 3, H, W), about -1..1."""
        scaled = (latents / self._scale + self._shift).to(self.dtype, memory_format=torch.channels_last)
        return self.autoencoder.decode(scaled, return_dict=False)[0]

    def denoise(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """One denoiser call: x (rows, C, h, w), t (rows,), a condition of one row or ``rows`` → the raw output, float32."""
        rows = len(x)
        extra: dict[str, Any] = {}
        tokens = condition.tokens.expand(rows, -1, -1)
        if condition.pooled is not None:
            height, width = x.shape[-2] * self.factor, x.shape[-1] * self.factor
            size = torch.tensor([[height, width, 0, 0, height, width]], device=self.device, dtype=self.dtype)
            extra["added_cond_kwargs"] = {"text_embeds": condition.pooled.expand(rows, -1), "time_ids": size.expand(rows, -1)}
        if self._guidance_embedding is not None:
            extra["timestep_cond"] = self._guidance_embedding.expand(rows, -1)
        x = x.to(self.dtype, memory_format=torch.channels_last)
        return self.denoiser(x, t, tokens, return_dict=False, **extra)[0].float()

    def _embed_guidance(self, w: float) -> Tensor | None:
        """The embedded guidance scale of guidance-distilled consistency models (arXiv 2310.04378), (1, width), for those that take one."""
        width = self.denoiser.config.get("time_cond_proj_dim")
        if not width:
            return None
        half = width // 2
        frequencies = torch.exp(torch.arange(half, device=self.device) * -(torch.log(torch.tensor(10000.0)) / (half - 1)))
        angles = w * 1000.0 * frequencies
        return torch.cat([angles.sin(), angles.cos()])[None].to(self.dtype)
