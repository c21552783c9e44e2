"""Precision: the data type of each component of a checkpoint, by its architecture, its class and the device.

float16 ends at 65,504. U-Nets stay below that. Flow transformers and language models as text encoders exceed it now and
then, and the result is NaN: they run in bfloat16, with the range of float32, or in float32 where a device lacks that.
What is chosen on GPUs and Macs is from documentation, and was run on a CPU alone.
"""

from __future__ import annotations

import platform
import re
from dataclasses import dataclass

import torch

from engine.models.architectures import Architecture
from engine.models.model_error import ModelError
from engine.runtime.onednn import has_kernels

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
#: Starts of the class names of text encoders that are language models.
LANGUAGE_MODELS = ("T5", "UMT5", "Gemma", "Qwen")
#: First compute capability of NVIDIA's cards with bfloat16 units (Ampere), and that of the Turing cards.
BFLOAT16_CAPABILITY, TURING_CAPABILITY = (8, 0), (7, 5)
#: Turing cards without tensor cores, whose float16 convolutions give NaN.
_NAN_IN_FLOAT16 = re.compile(r"\b(GTX 16\d\d|MX[45]50|CMP 30HX|T(400|500|550|600|1000|1200|2000))\b")
#: First macOS with bfloat16 on MPS.
BFLOAT16_MACOS = 14


@dataclass(frozen=True)
class Precision:
    """Data types of a checkpoint's components: ``language`` for language models that encode text, else ``main``."""

    main: torch.dtype
    language: torch.dtype

    def of(self, class_name: str) -> torch.dtype:
        """Return the type for a component of this class."""
        return self.language if class_name.startswith(LANGUAGE_MODELS) else self.main


def describe_dtype(dtype: torch.dtype) -> str:
    """Return the name that ``/dtype`` has for it."""
    return str(dtype).removeprefix("torch.")


def pick_dtype(name: str, device: torch.device, architecture: type[Architecture] | None = None) -> torch.dtype:
    """Return the dtype called ``name``.

    ``auto`` depends on the device. On a CPU it is bfloat16 if that has the instructions, else float32. On a GPU it is
    the architecture's ``half_dtype`` if the device computes correctly in that, else float32; without an
    ``architecture`` it is as for a U-Net. Raises ModelError for one that the device lacks.
    """
    if name != "auto":
        dtype = _DTYPES[name]
        if device.type == "mps" and dtype is torch.bfloat16 and not has_bfloat16(device):
            raise ModelError(f"/dtype bfloat16 needs macOS {BFLOAT16_MACOS} on this GPU; use float16 or float32")
        return dtype
    if device.type == "cpu":
        return torch.bfloat16 if has_bfloat16(device) else torch.float32
    half = torch.float16 if architecture is None else architecture.half_dtype
    usable = has_bfloat16(device) if half is torch.bfloat16 else has_float16(device)
    return half if usable else torch.float32


def pick_precision(name: str, device: torch.device, architecture: type[Architecture] | None = None) -> Precision:
    """Return the types for the dtype called ``name``, see ``pick_dtype``: language models are kept out of float16."""
    dtype = pick_dtype(name, device, architecture)
    if dtype is not torch.float16 or device.type == "cpu":
        return Precision(dtype, dtype)
    if has_bfloat16(device):
        return Precision(dtype, torch.bfloat16)
    return Precision(dtype, torch.float32 if name == "auto" else dtype)


def has_bfloat16(device: torch.device) -> bool:
    """Return whether ``device`` computes in bfloat16 itself: emulated it is slower than float32."""
    if device.type == "cpu":
        return has_kernels(torch.bfloat16)
    if device.type == "mps":
        return _has_macos(BFLOAT16_MACOS)
    if device.type == "cuda" and not torch.version.hip:
        capability = _cuda_capability(device)
        return torch.cuda.is_bf16_supported() if capability is None else capability >= BFLOAT16_CAPABILITY
    return True


def has_float16(device: torch.device) -> bool:
    """Return whether convolutions in float16 are right on ``device``."""
    if device.type != "cuda" or torch.version.hip or _cuda_capability(device) != TURING_CAPABILITY:
        return True
    return not _NAN_IN_FLOAT16.search(torch.cuda.get_device_name(device))


def wider_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype | None:
    """Return the next type with a wider range or more digits on ``device``, None after float32.

    On a GPU with bfloat16 that is what follows float16: it needs half the time and memory of float32.
    """
    if dtype is torch.float32:
        return None
    prefers_bfloat16 = dtype is torch.float16 and device.type != "cpu" and has_bfloat16(device)
    return torch.bfloat16 if prefers_bfloat16 else torch.float32


def _cuda_capability(device: torch.device) -> tuple[int, int] | None:
    """Return the compute capability of a card, None if it cannot be read."""
    try:
        return torch.cuda.get_device_capability(device)
    except (RuntimeError, AssertionError):  # no driver, or no CUDA in this build
        return None


def _has_macos(major: int) -> bool:
    """Return whether this is macOS ``major`` or newer. A Python built for an old one sees 10.16 instead."""
    if torch.backends.mps.is_available():
        try:
            return torch.backends.mps.is_macos_or_newer(major, 0)
        except RuntimeError:
            pass  # no MPS in this build
    version = platform.mac_ver()[0]
    return bool(version) and int(version.split(".")[0]) >= major
