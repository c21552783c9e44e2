"""Requirements of compilation: what is missing on this machine, and how to get it.

Those of GPUs, Windows and macOS are from the sources of torch; they were tested with stand-ins alone.
"""

from __future__ import annotations

import os
import platform
import shutil
from importlib.util import find_spec
from pathlib import Path

import torch

from engine.compile import tensorrt
from engine.compile.cuda_graphs import torch_release

#: Lowest compute capability of an NVIDIA GPU that Triton generates code for.
MIN_CAPABILITY = (7, 0)
#: How to get each C++ compiler.
_COMPILERS = {"cl": "Visual Studio's build tools", "clang++": "xcode-select --install", "g++": "apt install g++"}


def missing_requirement(device: torch.device, kind: str = "compile") -> str:
    """Return what is missing to compile for ``device`` and how to get it, empty if nothing is.

    ``kind`` is one of ACCELERATORS: what is asked for.
    """
    if kind == "tensorrt":
        return tensorrt.missing_requirement(device)
    if kind == "graphs":
        return "" if device.type == "cuda" else "CUDA graphs need an NVIDIA or AMD GPU; use --accelerate auto"
    if torch_release() < (2, 8):
        return "torch 2.8 or newer is needed"
    if device.type not in ("cpu", "cuda"):
        return f"{device.type} is not supported"
    return (_missing_for_gpu(device) if device.type == "cuda" else "") or _missing_compiler()


def toolkit_environment(device: torch.device) -> dict[str, str]:
    """Return the environment variables with which a builder process finds the headers of CUDA.

    Without a toolkit, the copy in Triton's package serves.
    """
    folder = _triton_toolkit()
    if device.type != "cuda" or torch.version.hip is not None or folder is None or _cuda_home():
        return {}
    return {"CUDA_HOME": str(folder)}


def _missing_compiler() -> str:
    compiler = {"Windows": "cl", "Darwin": "clang++"}.get(platform.system(), "g++")
    if shutil.which(compiler) is None:
        return f"no C++ compiler ({compiler}); install it: {_COMPILERS[compiler]}"
    return ""


def _missing_for_gpu(device: torch.device) -> str:
    """Return what the compiler lacks on a GPU. It would fail after minutes otherwise, at every start."""
    is_hip = torch.version.hip is not None
    if platform.system() == "Windows":
        tensorrt_hint = "" if is_hip else ", and --accelerate tensorrt is another way"
        return f"torch compiles no packages for a GPU on Windows; CUDA graphs need none{tensorrt_hint}"
    if not torch.cuda.is_available():
        name = "ROCm" if is_hip else f"CUDA {torch.version.cuda}"
        return f"no GPU answers: the driver is missing, or older than {name} of this torch needs"
    if not is_hip and (capability := torch.cuda.get_device_capability(device)) < MIN_CAPABILITY:
        return (
            f"Triton needs compute capability {_format_version(MIN_CAPABILITY)}, "
            f"{torch.cuda.get_device_name(device)} has {_format_version(capability)}"
        )
    if find_spec("triton") is None:
        return "Triton is not installed; pip install triton"
    if is_hip:
        return "" if _rocm_home() else "the ROCm toolkit is missing; install it, or set ROCM_HOME to its folder"
    if not _cuda_home() and _triton_toolkit() is None:
        return "the CUDA toolkit is missing; install it, or set CUDA_HOME to its folder"
    return ""


def _cuda_home() -> str:
    """Return the folder of the CUDA toolkit where torch's compiler looks for it, empty without one."""
    return _read_extension("CUDA_HOME")


def _rocm_home() -> str:
    return _read_extension("ROCM_HOME")


def _read_extension(name: str) -> str:
    try:
        from torch.utils import cpp_extension
    except ImportError:  # setuptools is missing
        return os.environ.get(name, "")
    return str(getattr(cpp_extension, name) or "")


def _triton_toolkit() -> Path | None:
    """Return the folder with CUDA's headers in Triton's package, None where there is none."""
    spec = find_spec("triton")
    for location in spec.submodule_search_locations or () if spec is not None else ():
        folder = Path(location, "backends", "nvidia")
        if (folder / "include" / "cuda.h").is_file():
            return folder
    return None


def _format_version(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))
