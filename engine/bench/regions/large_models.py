"""Layers of SD3 medium and Lumina-Next at their real sizes, with random weights and small text encoders."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch

from engine.bench.random_weights import Components, sd3
from engine.bench.small_weights import language_tokenizer
from engine.models import Model
from engine.models.loading import build_model


def lumina_next(layers: int = 24) -> Components:
    """Build Lumina-Next: a transformer of 1.7 billion weights, with the tiny autoencoder and a text encoder of a layer.

    Its hidden size is that of Gemma 2B.
    """
    from diffusers import AutoencoderTiny, LuminaNextDiT2DModel
    from transformers import GemmaConfig, GemmaModel

    tokenizer = language_tokenizer(256)
    language = GemmaConfig(
        vocab_size=len(tokenizer), hidden_size=2048, intermediate_size=2048, num_hidden_layers=1, num_attention_heads=8,
        num_key_value_heads=1, head_dim=256,
    )  # fmt: skip
    transformer = LuminaNextDiT2DModel(
        sample_size=128, patch_size=2, in_channels=4, hidden_size=2304, num_layers=layers, num_attention_heads=32,
        num_kv_heads=8, multiple_of=256, norm_eps=1e-5, learn_sigma=True, qk_norm=True, cross_attention_dim=2048,
    )  # fmt: skip
    return {
        "transformer": transformer,
        "vae": AutoencoderTiny(),
        "text_encoder": GemmaModel(language),
        "tokenizer": tokenizer,
        "scheduler": {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 1.0, "num_train_timesteps": 1000},
    }


class LargeModel(NamedTuple):
    """What builds some layers of a model, the fewest that stand for all, and whether text tokens pass through them."""

    build: Callable[[int], Components]
    fewest_layers: int
    has_text_tokens: bool


LAYERS = 24
#: The last layer of SD3 has no text stream, so that one more is needed.
LARGE_MODELS: Mapping[str, LargeModel] = {
    "SD3 medium": LargeModel(lambda layers: sd3(layers, text_layers=(1, 1)), 2, True),
    "Lumina-Next": LargeModel(lumina_next, 1, False),
}


def build_large_model(name: str, layers: int, dtype: torch.dtype, device: torch.device) -> Model:
    """Build ``layers`` layers of a model, the same weights each time."""
    torch.manual_seed(0)
    with torch.device(device):
        components = LARGE_MODELS[name].build(layers)
    components.pop("index", None)
    parts = {key: part.to(dtype) if isinstance(part, torch.nn.Module) else part for key, part in components.items()}
    return build_model(name, parts, device, dtype)
