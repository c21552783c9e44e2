"""IP-Adapter: an image as a prompt (Ye et al., arXiv 2308.06721), its keys and values computed once per image."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from engine.adapters.async_loader import AsyncLoader
from engine.adapters.attention import ImagePrompt, KeysValues
from engine.adapters.base import Adapter, check_fits, resolve
from engine.models import Model
from engine.models.component_files import read_shapes
from engine.models.components import load_module
from engine.models.model_error import reading
from engine.models.placement import place
from engine.runtime.device_lock import device_lock, split_into_chunks
from engine.runtime.handover import on_side_stream
from engine.shared import user_files
from engine.shared.errors import first_line
from engine.shared.frame import Frame
from engine.shared.parameter import InvalidValue
from engine.shared.settings import AdapterSettings

#: CLIP's training statistics.
_MEAN, _DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
#: The second source as a reference picture is encoded again every this many frames.
REFERENCE_FRAMES = 15
#: No image prompt is requested.
_NO_REQUEST = ("", "", "")


@dataclass
class ImageEncoder:
    """A loaded IP-Adapter: image encoder, projection to tokens, and the key and value weights of each layer."""

    encoder: Any
    projection: Any
    weights: dict[str, KeysValues]
    heads: dict[str, int]

    @torch.inference_mode()
    def encode(self, picture: Tensor) -> ImagePrompt:
        """Return the prompt of ``picture``, (3, H, W) in 0..1."""
        side = int(self.encoder.config.image_size)
        device = self.encoder.device
        pixels = F.interpolate(picture[None].float(), (side, side), mode="bicubic", antialias=True)
        with device_lock(device):
            return self._encode_pixels(pixels.clamp(0, 1).to(device))

    def _encode_pixels(self, pixels: Tensor) -> ImagePrompt:
        """Encode a picture (1, 3, side, side) in 0..1 on the device."""
        device, dtype = pixels.device, self.encoder.dtype
        mean, deviation = (torch.tensor(v, device=device).view(1, 3, 1, 1) for v in (_MEAN, _DEVIATION))
        pixels = ((pixels - mean) / deviation).to(dtype)
        if type(self.projection).__name__ == "ImageProjection":
            features = self.encoder(pixels).image_embeds
            empty = torch.zeros_like(features)
        else:  # the "plus" variants read the penultimate layer, and that of an empty picture
            features = self.encoder(pixels, output_hidden_states=True).hidden_states[-2]
            empty = self.encoder(torch.zeros_like(pixels), output_hidden_states=True).hidden_states[-2]
        return ImagePrompt(self._keys_values(self.projection(features)), self._keys_values(self.projection(empty)))

    def _keys_values(self, tokens: Tensor) -> dict[str, KeysValues]:
        def split_heads(x: Tensor, heads: int) -> Tensor:
            return x.view(1, -1, heads, x.shape[-1] // heads).transpose(1, 2)

        return {
            layer: (
                split_heads(F.linear(tokens, k), self.heads[layer]),
                split_heads(F.linear(tokens, v), self.heads[layer]),
            )
            for layer, (k, v) in self.weights.items()
        }


class ImagePromptAdapter(Adapter):
    """The image prompt of ``/reference``: a file, or the second source, encoded again every
    REFERENCE_FRAMES frames.
    """

    loader: AsyncLoader[tuple[str, str, str], ImagePrompt | None]

    def __init__(self, model: Model, blocking: bool) -> None:
        self._model = model
        self._reference: Frame | None = None
        self._encoder: tuple[tuple[str, str], ImageEncoder] | None = None
        self._failed: tuple[str, str] | None = None  # model and encoder that failed for the second source
        self.loader = AsyncLoader(on_side_stream(model.device, self._load), _NO_REQUEST, blocking)
        self.prompt: ImagePrompt | None = None
        self.weight = 0.0

    def update(self, settings: AdapterSettings, reference: Frame | None) -> None:
        image = settings.image_prompt
        picture = image.picture
        if image.follows_source:
            self._reference = reference
            picture = f"source {reference.sequence // REFERENCE_FRAMES}" if reference is not None else ""
        request = (image.model, image.encoder, picture)
        complete = all(request)
        prompt = self.loader.poll(request if complete else _NO_REQUEST)
        if prompt is not None or not complete:
            self.prompt = prompt
        self.weight = image.weight

    def _load(self, request: tuple[str, str, str], report: Callable[[str], None]) -> ImagePrompt | None:
        adapter, encoder, picture = request
        follows_source = picture.startswith("source ")
        if not picture:
            self._failed = None
            return None
        if follows_source and self._failed == (adapter, encoder):  # reported once, not at each picture
            return None
        self._failed = (adapter, encoder)
        prompt = self._encode(adapter, encoder, "" if follows_source else picture)
        self._failed = None
        return prompt

    def _encode(self, adapter: str, encoder: str, picture: str) -> ImagePrompt:
        """Return the prompt of an image file, or of the second source where ``picture`` is empty."""
        architecture = self._model.architecture
        if not architecture.supports_controlnet:
            raise InvalidValue(f"image adapter {adapter}: not supported for a {architecture.title} model")
        if self._encoder is None or self._encoder[0] != (adapter, encoder):
            with reading(f"image adapter {adapter}"):
                paths = (
                    resolve(adapter, "adapters", "image adapter"),
                    resolve(encoder, "adapters", "image encoder", hub=True),
                )
                self._encoder = ((adapter, encoder), read_ip_adapter(*paths, self._model.denoiser))
        with reading(f"image prompt of {adapter}", verb="encoded"):
            reference = self._reference
            if not picture and reference is not None:
                pixels = torch.from_numpy(reference.pixels[..., :3]).permute(2, 0, 1).float() / 255
                return self._encoder[1].encode(pixels)
            return self._encoder[1].encode(read_image(picture))


def read_image(name: str) -> Tensor:
    """Read an image file as (3, H, W) in 0..1. Raises InvalidValue."""
    try:
        pixels = user_files.read_image(Path(name).expanduser())
    except OSError as error:
        raise InvalidValue(f"image {name[:200]!r} cannot be read: {error.strerror or first_line(error)}") from None
    except (ValueError, RuntimeError):  # a null character, or ~NAME of no user
        raise InvalidValue(f"image {name[:200]!r} cannot be read: not a file name") from None
    return torch.from_numpy(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)).permute(2, 0, 1).float() / 255


def read_ip_adapter(path: Path, encoder: Path, unet: Any) -> ImageEncoder:
    """Load an IP-Adapter file and a CLIP image encoder's folder for one U-Net.

    Raises InvalidValue where they do not fit each other or the U-Net.
    """
    from transformers import CLIPVisionModelWithProjection

    if path.suffix != ".safetensors":
        raise InvalidValue(f"image adapter {path.name}: only .safetensors files are read")
    what = f"image adapter {path.name}"
    with reading(what):
        read_shapes(path)
        check_fits(path, unet, what)
        weights = load_file(path)
        if not all(bool(tensor.isfinite().all()) for tensor in weights.values()):
            raise InvalidValue(f"{what} holds NaN or infinity")
    with reading(f"image encoder {encoder.name}"):
        check_fits(encoder, unet, f"image encoder {encoder.name}")
        model = load_module(CLIPVisionModelWithProjection, encoder, unet.dtype, f"image encoder {encoder}:")
    image_proj, ip_adapter = (
        {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
        for prefix in ("image_proj.", "ip_adapter.")
    )
    layers = [name.removesuffix(".processor") for name in unet.attn_processors if name.endswith("attn2.processor")]
    pairs, heads = {}, {}
    for number, layer in enumerate(layers):
        # The files number all attention layers, self and cross in turn: the cross ones are 1, 3, 5 …
        keys = [f"{2 * number + 1}.to_{which}_ip.weight" for which in "kv"]
        if any(key not in ip_adapter for key in keys):
            raise InvalidValue(f"image adapter {path.name} is for another model: it has no weights for {layer}")
        attention = unet.get_submodule(layer)
        k, v = (ip_adapter[key].to(unet.dtype) for key in keys)
        if k.shape[0] != attention.to_k.out_features:
            raise InvalidValue(
                f"image adapter {path.name} is for another model: {layer} is {attention.to_k.out_features} wide here"
            )
        pairs[layer], heads[layer] = (k, v), attention.heads
    for group in split_into_chunks([*pairs.items()], lambda item: item[1][0].nbytes + item[1][1].nbytes):
        with device_lock(unet.device):
            pairs.update({layer: (k.to(unet.device), v.to(unet.device)) for layer, (k, v) in group})
    with device_lock(unet.device):
        projection = unet._convert_ip_adapter_image_proj_to_diffusers(image_proj)
        projection.to(unet.device, unet.dtype).requires_grad_(False).eval()
    return ImageEncoder(place(model, unet.device), projection, pairs, heads)
