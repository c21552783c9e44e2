"""One file an architecture: how it turns prompts into conditions, and latents, timesteps and conditions into predictions."""

from __future__ import annotations

from engine.models.architectures.base import Architecture, Condition
from engine.models.architectures.flux import Flux, Flux2
from engine.models.architectures.lumina import Lumina2, LuminaNext
from engine.models.architectures.sana import SanaSprint
from engine.models.architectures.sd3 import StableDiffusion3
from engine.models.architectures.unet import StableDiffusion, StableDiffusionXL

__all__ = ["ARCHITECTURES", "Architecture", "Condition", "architecture_for"]

#: Class of the denoiser → its family, for those that have one; a U-Net's depends on its text encoders.
ARCHITECTURES: dict[str, type[Architecture]] = {
    "SD3Transformer2DModel": StableDiffusion3,
    "FluxTransformer2DModel": Flux,
    "Flux2Transformer2DModel": Flux2,
    "LuminaNextDiT2DModel": LuminaNext,
    "Lumina2Transformer2DModel": Lumina2,
    "SanaTransformer2DModel": SanaSprint,
}


def architecture_for(denoiser: str, two_encoders: bool) -> type[Architecture] | None:
    """The family of a denoiser's class, None for one that is not supported."""
    if denoiser == "UNet2DConditionModel":
        return StableDiffusionXL if two_encoders else StableDiffusion
    return ARCHITECTURES.get(denoiser)
