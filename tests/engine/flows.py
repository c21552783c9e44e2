"""Small checkpoints of SD3, FLUX, Lumina and SANA-Sprint with random weights, saved in the formats of real ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import AutoencoderTiny

from engine.bench import small_weights
from engine.bench.small_weights import randomize


def save_checkpoint(folder: Path, pipeline: str, components: dict[str, Any]) -> Path:
    """Save each component to its folder, and the index that names their classes."""
    index: dict[str, Any] = {"_class_name": pipeline}
    for name, component in components.items():
        if name in ("transformer", "vae"):
            randomize(component)
        component.save_pretrained(folder / name)
        library = type(component).__module__.split(".")[0]
        index[name] = [library, type(component).__name__]
    (folder / "model_index.json").write_text(json.dumps(index), encoding="utf-8")
    return folder


def _save(folder: Path, model: dict[str, Any], **schedule: Any) -> Path:
    """Save a model of ``small_weights``, with other settings of its scheduler."""
    parts = dict(model)
    pipeline, settings = parts.pop("index")["_class_name"], parts.pop("scheduler") | schedule
    scheduler = getattr(diffusers, settings["_class_name"]).from_config(settings)
    return save_checkpoint(folder, pipeline, parts | {"scheduler": scheduler})


def save_sd3(folder: Path, t5: bool = True, channels: int = 8, vae: torch.nn.Module | None = None) -> Path:
    model = small_weights.sd3(channels)
    omitted = () if t5 else ("tokenizer_3", "text_encoder_3")
    model = {name: part for name, part in model.items() if name not in omitted}
    return _save(folder, model | ({} if vae is None else {"vae": vae}))


def save_sd3_tiny(folder: Path) -> Path:
    """Save SD3 with 16 channels and a tiny autoencoder for them, like TAESD3."""
    tiny = AutoencoderTiny(
        encoder_block_out_channels=(16,) * 4, decoder_block_out_channels=(16,) * 4, latent_channels=16, shift_factor=0.0
    )
    return save_sd3(folder, channels=16, vae=tiny)


def save_flux(folder: Path, dev: bool = False) -> Path:
    return _save(folder, small_weights.flux(dev), use_dynamic_shifting=dev, shift=3.0 if dev else 1.0)


def save_flux2(folder: Path) -> Path:
    return _save(folder, small_weights.flux2())


def save_lumina(folder: Path) -> Path:
    return _save(folder, small_weights.lumina(), shift=1.0)


def save_lumina2(folder: Path) -> Path:
    return _save(folder, small_weights.lumina2())


def save_sana(folder: Path) -> Path:
    return _save(folder, small_weights.sana())


#: Architecture → function that saves its folder.
FLOWS: dict[str, Callable[[Path], Path]] = {
    "sd3": save_sd3,
    "sd3-tiny": save_sd3_tiny,
    "flux": save_flux,
    "flux2": save_flux2,
    "lumina": save_lumina,
    "lumina2": save_lumina2,
    "sana": save_sana,
}
