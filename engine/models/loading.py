"""Loading: a model's name → ``Model``. Finds the checkpoint, checks that it fits and is complete, and builds it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import torch

from engine.models.architectures import Architecture, find_architecture
from engine.models.autoencoders import make_codec
from engine.models.checkpoint import list_weight_files, load_autoencoder, load_components, resolve
from engine.models.component_files import count_elements
from engine.models.components import COMPONENTS, DENOISERS
from engine.models.hf_imports import import_quietly
from engine.models.hub import Progress
from engine.models.model import Model
from engine.models.model_error import ModelError, reading
from engine.models.noise_schedule import read_noise_schedule
from engine.shared.errors import first_line
from engine.shared.options import EngineOptions

log = logging.getLogger(__name__)
#: Held while a model is built: diffusers and transformers change process-wide settings for the time of it.
BUILD_LOCK = threading.RLock()
#: Memory needed by a model, as a multiple of its weights.
MEMORY_FACTOR = 1.1
#: Characters of a name that an error shows.
MAX_SHOWN = 300
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def pick_device(name: str = "auto") -> torch.device:
    """Return the device called ``name``; auto is the first of CUDA, MPS and CPU that works. Raises ModelError."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ModelError(f"device {name!r} is not available ({first_line(error)}); try --device auto") from None
    return device


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return the dtype called ``name``; auto is float16 on a GPU, on a CPU bfloat16 if it has the instructions."""
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
    """Load the checkpoint called ``name``, with ``autoencoder`` in place of its autoencoder if one is named.

    Raises ModelError if it is missing, incomplete, damaged, too large or not supported.
    """
    options = options or EngineOptions()
    import_quietly()
    with reading(f"model {name[:MAX_SHOWN]!r}", "; download it again or use another", "loaded"):
        path = resolve(name, options, progress)
        _check_memory(name, path, device, dtype, options.allow_pickle)
        with BUILD_LOCK:
            components = load_components(path, dtype, options)
            architecture = _identify(name, components)
            if autoencoder:
                with reading(f"autoencoder {autoencoder[:MAX_SHOWN]!r}", "; use another", "loaded"):
                    replacement = load_autoencoder(autoencoder, architecture, dtype, options, progress)
                    _check_latents(autoencoder, replacement, components["vae"])
                components["vae"] = replacement
            return _build(name, architecture, components, autoencoder, device, dtype)


def build_model(name: str, components: dict[str, Any], device: torch.device, dtype: torch.dtype) -> Model:
    """Build a model of components that are loaded already. Raises ModelError if they are incomplete or unsupported."""
    return _build(name, _identify(name, components), components, "", device, dtype)


def free_memory_bytes(device: torch.device) -> int:
    """Return the memory that can still be allocated on the device."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)


def required_memory_bytes(path: Path, dtype: torch.dtype, allow_pickle: bool = False) -> int:
    """Return the size of the weights of ``path`` in ``dtype``, from the headers of its files.

    Raises what ``list_weight_files`` and ``count_elements`` do.
    """
    return torch.empty(0, dtype=dtype).element_size() * count_elements(list_weight_files(path, allow_pickle))


def _check_memory(name: str, path: Path, device: torch.device, dtype: torch.dtype, allow_pickle: bool) -> None:
    """Reject a model that cannot fit before it is read: a stream may be running in the same memory."""
    needed = MEMORY_FACTOR * required_memory_bytes(path, dtype, allow_pickle)
    free = free_memory_bytes(device)
    if needed > free:
        raise ModelError(
            f"model {name!r} needs {needed / 2**30:.1f} GiB, but {free / 2**30:.1f} GiB are free on {device}; "
            "use a smaller model, or /dtype float16 or bfloat16"
        )


def _check_latents(name: str, replacement: Any, original: Any) -> None:
    """Raise ModelError unless the replacement autoencoder has latents of the original's shape."""
    new, old = make_codec(replacement), make_codec(original)
    if (new.channels, new.factor) != (old.channels, old.factor):
        raise ModelError(
            f"autoencoder {name!r} has {new.channels} channels at 1/{new.factor}, "
            f"this model {old.channels} at 1/{old.factor}; use one made for this model"
        )


def _identify(name: str, components: Mapping[str, Any]) -> type[Architecture]:
    """Return the architecture of a checkpoint, and raise ModelError if a component is missing."""
    denoiser = next((components[component] for component in DENOISERS if component in components), None)
    if denoiser is None:
        raise ModelError(f"model {name!r} has no unet or transformer; use an image model in diffusers format")
    architecture = find_architecture(components)
    if architecture is None:
        raise ModelError(f"model {name!r}: denoiser {type(denoiser).__name__} is not supported; use another model")
    missing = [component for component in ("vae", *architecture.required_components) if component not in components]
    if missing:
        raise ModelError(f"model {name!r} has no {', '.join(missing)}; download the model again")
    return architecture


def _build(
    name: str,
    architecture: type[Architecture],
    components: dict[str, Any],
    autoencoder: str,
    device: torch.device,
    dtype: torch.dtype,
) -> Model:
    try:
        schedule = read_noise_schedule(components["scheduler"], architecture.dynamic_shift)
    except ModelError as error:
        raise ModelError(f"model {name!r}: {error}; use another model") from None
    for component in COMPONENTS:
        if component not in components:
            continue
        module = components[component].to(device).requires_grad_(False).eval()
        damaged = next((key for key, tensor in module.named_parameters() if not bool(tensor.isfinite().all())), None)
        if damaged is not None:
            raise ModelError(
                f"model {name!r}: {component} holds NaN or infinity in {damaged}; download the damaged file again"
            )
    for component in ("unet", "vae"):
        if component in components:
            components[component].to(memory_format=torch.channels_last)
    return Model(name, architecture(components, device, dtype), components["vae"], schedule, autoencoder)
