"""IP-Adapter: a picture as a prompt (Ye et al., arXiv 2308.06721), its keys and values made once for each picture."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from engine.adapters.attention import ImagePrompt, KeysValues
from engine.shared.parameter import InvalidValue

# What CLIP's image encoders were trained on.
_MEAN, _DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@dataclass
class ImageAdapter:
    """A loaded IP-Adapter: the image encoder, its projection to tokens, and the key and value weights of each cross-attention layer."""

    encoder: Any
    projection: Any
    weights: dict[str, KeysValues]
    heads: dict[str, int]

    @torch.inference_mode()
    def prompt(self, picture: Tensor) -> ImagePrompt:
        """The prompt that ``picture`` (3, H, W) in 0..1 is."""
        side = int(self.encoder.config.image_size)
        device, dtype = self.encoder.device, self.encoder.dtype
        pixels = (
            F.interpolate(picture[None].float(), (side, side), mode="bicubic", antialias=True).clamp(0, 1).to(device)
        )
        mean, deviation = (torch.tensor(v, device=device).view(1, 3, 1, 1) for v in (_MEAN, _DEVIATION))
        pixels = ((pixels - mean) / deviation).to(dtype)
        if type(self.projection).__name__ == "ImageProjection":
            features = self.encoder(pixels).image_embeds
            nothing = torch.zeros_like(features)
        else:  # the "plus" kinds read the penultimate layer, and that of an empty picture
            features = self.encoder(pixels, output_hidden_states=True).hidden_states[-2]
            nothing = self.encoder(torch.zeros_like(pixels), output_hidden_states=True).hidden_states[-2]
        return ImagePrompt(self._keys(self.projection(features)), self._keys(self.projection(nothing)))

    def _keys(self, tokens: Tensor) -> dict[str, KeysValues]:
        def split(x: Tensor, heads: int) -> Tensor:
            return x.view(1, -1, heads, x.shape[-1] // heads).transpose(1, 2)

        return {
            layer: (split(F.linear(tokens, k), self.heads[layer]), split(F.linear(tokens, v), self.heads[layer]))
            for layer, (k, v) in self.weights.items()
        }


def read(path: Path, encoder: Path, unet: Any) -> ImageAdapter:
    """An IP-Adapter file and a CLIP image encoder's folder, for one U-Net. Raises BadValue where they do not suit each other or it."""
    from transformers import CLIPVisionModelWithProjection

    if path.suffix != ".safetensors":
        raise InvalidValue(f"image adapter {path.name}: only .safetensors files are read")
    try:
        weights = load_file(path)
        model = CLIPVisionModelWithProjection.from_pretrained(encoder, dtype=unet.dtype, use_safetensors=True)
    except (OSError, ValueError, SafetensorError) as error:
        raise InvalidValue(f"image adapter {path.name} cannot be read: {str(error).splitlines()[0]}") from None
    sides = {
        side: {k.removeprefix(side): v for k, v in weights.items() if k.startswith(side)}
        for side in ("image_proj.", "ip_adapter.")
    }
    layers = [name.removesuffix(".processor") for name in unet.attn_processors if name.endswith("attn2.processor")]
    pairs, heads = {}, {}
    for number, layer in enumerate(layers):
        # The files number all attention layers, self and cross in turn: the cross ones are 1, 3, 5 …
        keys = [f"{2 * number + 1}.to_{which}_ip.weight" for which in "kv"]
        if any(key not in sides["ip_adapter."] for key in keys):
            raise InvalidValue(f"image adapter {path.name} is for another model: it has no weights for {layer}")
        attention = unet.get_submodule(layer)
        k, v = (sides["ip_adapter."][key].to(unet.device, unet.dtype) for key in keys)
        if k.shape[0] != attention.to_k.out_features:
            raise InvalidValue(
                f"image adapter {path.name} is for another model: {layer} is {attention.to_k.out_features} wide here"
            )
        pairs[layer], heads[layer] = (k, v), attention.heads
    projection = unet._convert_ip_adapter_image_proj_to_diffusers(sides["image_proj."])
    projection.to(unet.device, unet.dtype).requires_grad_(False).eval()
    return ImageAdapter(model.to(unet.device).requires_grad_(False).eval(), projection, pairs, heads)
