"""From a name to a ``Model``: located, checked for what it needs, loaded, and checked again for what it holds."""

from __future__ import annotations

import json
import logging
import math
import threading
from pathlib import Path
from typing import Any

import psutil
import torch
from safetensors import SafetensorError

from engine.models.architectures import Architecture, architecture_for
from engine.models.autoencoders import codec
from engine.models.checkpoint import (
    COMPONENTS,
    ModelError,
    Progress,
    load_autoencoder,
    load_components,
    resolve,
    weight_files,
)
from engine.models.hf_imports import import_quietly
from engine.models.model import Model
from engine.models.noise_schedule import read_noise_schedule
from engine.shared.options import EngineOptions
from engine.shared.parameter import InvalidValue

log = logging.getLogger(__name__)
#: Held by whoever builds a model: diffusers and transformers do it under settings of the whole process, so two at once spoil each other.
ONE_AT_A_TIME = threading.RLock()
#: A safetensors header is at most this long, in bytes, by its format.
LONGEST_HEADER = 100_000_000
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def pick_device(name: str = "auto") -> torch.device:
    """The device called ``name``; for auto the first of CUDA, MPS and CPU that this machine has. Raises ModelError."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ModelError(f"device {name!r} cannot be used here ({reason}); try --device auto") from None
    return device


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype called ``name``; auto is float16 on a GPU, and on a CPU bfloat16 where its instructions are there, else float32."""
    if name != "auto":
        return _DTYPES[name]
    if device.type != "cpu":
        return torch.float16
    return torch.bfloat16 if torch.ops.mkldnn._is_mkldnn_bf16_supported() else torch.float32


def load(
    name: str,
    device: torch.device,
    dtype: torch.dtype,
    options: EngineOptions | None = None,
    progress: Progress | None = None,
    autoencoder: str = "",
) -> Model:
    """Loads the checkpoint called ``name``, with another ``autoencoder`` than its own where one is named.

    Raises ModelError where it is missing, incomplete, too large, damaged or of a kind that is not supported.
    """
    options = options or EngineOptions()
    import_quietly()
    try:
        path = resolve(name, options, progress)
        _check_memory(name, path, device, dtype)
        with ONE_AT_A_TIME:
            parts = load_components(path, dtype, options)
            found = _family(name, parts)
            if autoencoder:
                parts["vae"] = _matching(
                    autoencoder, parts["vae"], load_autoencoder(autoencoder, found.__name__, dtype, options, progress)
                )
            return _assemble(name, found, parts, autoencoder, device, dtype)
    except InvalidValue:
        raise
    except (OSError, ValueError, KeyError, AttributeError, TypeError, SafetensorError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ModelError(f"model {name!r} cannot be loaded: {reason[0]}") from error


def assembled(name: str, parts: dict[str, Any], device: torch.device, dtype: torch.dtype) -> Model:
    """The model of parts that are there already. Raises ModelError where they make none."""
    return _assemble(name, _family(name, parts), parts, "", device, dtype)


def memory_free(device: torch.device) -> int:
    """Bytes that can still be taken on the device."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)


def memory_needed(path: Path, dtype: torch.dtype) -> int:
    """Bytes that the weights of ``path`` take in ``dtype``, by the headers of its files. Raises ValueError for one that has none."""
    size, total = torch.empty(0, dtype=dtype).element_size(), 0
    for file in weight_files(path):
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(min(length, LONGEST_HEADER)))
        total += size * sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")
    return total


def _check_memory(name: str, path: Path, device: torch.device, dtype: torch.dtype) -> None:
    """Refuses what cannot fit, before anything is read: a stream may be running beside."""
    needed, free = memory_needed(path, dtype), memory_free(device)
    if needed * 1.1 > free:
        raise ModelError(
            f"model {name!r} needs {needed / 2**30:.1f} GiB and a tenth to work in, but {free / 2**30:.1f} GiB are free on {device}; "
            "take a smaller model or a shorter dtype"
        )


def _matching(name: str, own: Any, other: Any) -> Any:
    """``other``, where its latents are of the shape of the model's ``own`` autoencoder."""
    ours, theirs = (codec(vae) for vae in (own, other))
    if (ours.channels, ours.factor) != (theirs.channels, theirs.factor):
        raise ModelError(
            f"autoencoder {name!r} has {theirs.channels} channels at 1/{theirs.factor}, this model {ours.channels} at 1/{ours.factor}"
        )
    return other


def _family(name: str, parts: dict[str, Any]) -> type[Architecture]:
    """The family of a checkpoint's parts, all of which are there."""
    denoiser = parts.get("unet") or parts.get("transformer")
    if denoiser is None:
        raise ModelError(f"model {name!r} has no unet and no transformer of a class that is known here")
    kind = type(denoiser).__name__
    found = architecture_for(kind, "text_encoder_2" in parts)
    if found is None:
        raise ModelError(f"model {name!r}: a denoiser of class {kind} is not supported")
    missing = [part for part in ("vae", *found.needs) if part not in parts]
    if missing:
        raise ModelError(f"model {name!r} has no {', '.join(missing)}; the download may be incomplete")
    return found


def _assemble(
    name: str,
    family: type[Architecture],
    parts: dict[str, Any],
    autoencoder: str,
    device: torch.device,
    dtype: torch.dtype,
) -> Model:
    schedule = read_noise_schedule(parts["scheduler"], type(parts[family.part]).__name__)
    for part in COMPONENTS:
        if part in parts:
            parts[part].to(device).requires_grad_(False).eval()
            broken = next(
                (key for key, tensor in parts[part].named_parameters() if not bool(tensor.isfinite().all())), None
            )
            if broken is not None:
                raise ModelError(
                    f"model {name!r}: {part} holds values that are not numbers ({broken}); the file is damaged"
                )
    for part in ("unet", "vae"):
        if part in parts:
            parts[part].to(memory_format=torch.channels_last)
    return Model(name, family(parts, device, dtype), parts["vae"], schedule, autoencoder)
