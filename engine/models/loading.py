"""Loading: a model's name → ``Model``. Finds the checkpoint, checks that it fits and is complete, and builds it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from engine.models.architectures import Architecture, find_architecture
from engine.models.autoencoders import make_codec
from engine.models.checkpoint import (
    list_weight_files,
    load_autoencoder,
    load_components,
    peek_architecture,
    read_class_names,
    resolve,
)
from engine.models.component_files import count_elements
from engine.models.components import COMPONENTS, DENOISERS, TEXT_ENCODERS
from engine.models.hf_imports import import_quietly
from engine.models.hub import Progress
from engine.models.model import Model
from engine.models.model_error import ModelError, reading
from engine.models.noise_schedule import read_noise_schedule
from engine.models.placement import check_finite, place
from engine.models.precision import Precision, pick_precision, wider_dtype
from engine.models.text_encoder_placement import LARGE_BYTES, PlacedEncoder, may_leave
from engine.runtime.device_lock import device_lock
from engine.runtime.device_memory import free_memory_bytes, is_short, release_cache
from engine.shared.errors import first_line
from engine.shared.options import EngineOptions

log = logging.getLogger(__name__)
#: Held while a model is built: diffusers and transformers change process-wide settings for the time of it.
BUILD_LOCK = threading.RLock()
#: Memory needed by a model, as a multiple of its weights.
MEMORY_FACTOR = 1.1
#: Characters of a name that an error shows.
MAX_SHOWN = 300


def pick_device(name: str = "auto") -> torch.device:
    """Return the device called ``name``; auto is the first of CUDA, MPS and CPU that works. Raises ModelError."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        with device_lock(device):
            torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ModelError(
            f"device {name!r} is not available ({first_line(error)}); try --device auto or phosphene doctor"
        ) from None
    return device


def load(
    name: str,
    device: torch.device,
    dtype: torch.dtype | str = "auto",
    options: EngineOptions | None = None,
    progress: Progress | None = None,
    autoencoder: str = "",
    make_room: Callable[[float], object] = lambda _bytes: None,
) -> Model:
    """Load the checkpoint called ``name``, with ``autoencoder`` in place of its autoencoder if one is named.

    ``dtype`` is torch's or a name: ``auto`` follows the architecture and the device, see ``pick_dtype``. ``make_room``
    is called with the bytes that are needed where fewer are free on a CUDA device. Raises ModelError if the model is
    missing, incomplete, damaged, too large or not supported.
    """
    options = options or EngineOptions()
    import_quietly()
    with reading(f"model {name[:MAX_SHOWN]!r}", "; download it again or use another", "loaded"):
        path = resolve(name, options, progress)
        if isinstance(dtype, str):
            precision = pick_precision(dtype, device, peek_architecture(path))
        else:
            precision = Precision(dtype, dtype)
        _check_memory(name, path, device, precision, options.allow_pickle, make_room)
        with BUILD_LOCK:
            components = load_components(path, precision, options)
            architecture = _identify(name, components)
            if autoencoder:
                with reading(f"autoencoder {autoencoder[:MAX_SHOWN]!r}", "; use another", "loaded"):
                    replacement = load_autoencoder(autoencoder, architecture, precision.main, options, progress)
                    _check_latents(autoencoder, replacement, components["vae"])
                components["vae"] = replacement
            return _build(name, architecture, components, autoencoder, device, precision.main)


def build_model(name: str, components: dict[str, Any], device: torch.device, dtype: torch.dtype) -> Model:
    """Build a model of components that are loaded already. Raises ModelError if they are incomplete or unsupported."""
    return _build(name, _identify(name, components), components, "", device, dtype)


def required_memory_bytes(
    path: Path,
    dtype: torch.dtype | Precision,
    allow_pickle: bool = False,
    components: tuple[str, ...] = COMPONENTS,
) -> int:
    """Return the size of the weights of ``path`` in ``dtype``, from the headers of its files.

    Raises what ``list_weight_files``, ``read_class_names`` and ``count_elements`` do.
    """
    precision = dtype if isinstance(dtype, Precision) else Precision(dtype, dtype)
    class_names = {} if path.is_file() else read_class_names(path)
    return sum(
        precision.of(class_names.get(file.parent.name, "")).itemsize * count_elements([file])
        for file in list_weight_files(path, allow_pickle, components)
    )


def large_text_encoder_bytes(path: Path, dtype: torch.dtype | Precision, allow_pickle: bool = False) -> int:
    """Return the size of the text encoders of ``path`` that may stay on the CPU, in ``dtype``."""
    sizes = [
        required_memory_bytes(path, dtype, allow_pickle, (component,))
        for component in TEXT_ENCODERS
        if (path / component).is_dir()
    ]
    return sum(size for size in sizes if size >= LARGE_BYTES)


def _check_memory(
    name: str,
    path: Path,
    device: torch.device,
    precision: Precision,
    allow_pickle: bool,
    make_room: Callable[[float], object] = lambda _bytes: None,
) -> None:
    """Reject a model that cannot fit before it is read: a stream may be running in the same memory."""
    needed = MEMORY_FACTOR * required_memory_bytes(path, precision, allow_pickle)
    if is_short(device, needed):
        make_room(needed)
        release_cache(device, needed)
        if is_short(device, needed):
            needed -= MEMORY_FACTOR * large_text_encoder_bytes(path, precision, allow_pickle)
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
    if _overflows(components["vae"], device):
        components["vae"].to(wider_dtype(torch.float16, device))
    placed_encoders: list[PlacedEncoder] = []
    for component in COMPONENTS:
        if component not in components:
            continue
        check_finite(components[component], f"model {name!r}: {component}")
        if component in TEXT_ENCODERS and may_leave(components[component], device):
            placed_encoders.append(PlacedEncoder(components[component], device))
        else:
            is_convolutional = component in ("unet", "vae")
            place(components[component], device, torch.channels_last if is_convolutional else torch.preserve_format)
    with device_lock(device):
        arguments = (components["vae"], schedule, autoencoder, placed_encoders)
        return Model(name, architecture(components, device, dtype), *arguments)


def _overflows(autoencoder: Any, device: torch.device) -> bool:
    """Return whether an autoencoder is known to give NaN in its type: its config asks for a wider one than float16."""
    if device.type == "cpu" or autoencoder.dtype is not torch.float16:
        return False
    is_default = "force_upcast" in autoencoder.config.get("_use_default_values", ())  # True, whatever the weights
    return bool(autoencoder.config.get("force_upcast")) and not is_default
