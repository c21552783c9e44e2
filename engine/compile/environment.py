"""The environment of builds: their folder, what they depend on apart from their recipe, and the memory they need."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from platformdirs import user_cache_path
from torch import nn

from engine.compile.requirements import toolkit_environment
from engine.runtime.device_memory import free_memory_bytes

#: Memory that a build needs on a GPU: a second process with the weights, its context and its working memory.
BUILD_MEMORY_FACTOR, BUILD_MEMORY_BYTES = 1.3, 3 << 29


def cache_folder() -> Path:
    """Return the folder of builds: in PHOSPHENE_CACHE if that is set, else in the system's cache folder."""
    configured = os.environ.get("PHOSPHENE_CACHE")
    return (Path(configured) if configured else user_cache_path("phosphene", appauthor=False)) / "compiled"


def describe_environment(device: torch.device) -> tuple[str, ...]:
    """Return what a build depends on apart from its recipe: library versions and the machine."""
    import diffusers

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else torch.backends.cpu.get_cpu_capability()
    return torch.__version__, diffusers.__version__, platform.system(), platform.machine(), name


def describe_gpu_software(device: torch.device) -> tuple[str, ...]:
    """Return what a failed build on a GPU depends on besides: the driver, Triton and the toolkit."""
    try:
        triton = version("triton")
    except PackageNotFoundError:
        triton = ""
    driver = getattr(torch._C, "_cuda_getDriverVersion", int)()
    return str(driver), triton, os.environ.get("CUDA_HOME", ""), *toolkit_environment(device).values()


def check_build_memory(module: nn.Module, device: torch.device) -> None:
    """Raise MemoryError where a second process with the module's weights would take the stream's memory."""
    if device.type != "cuda":
        return
    weights = sum(tensor.numel() * tensor.element_size() for tensor in module.parameters())
    needed, free = BUILD_MEMORY_FACTOR * weights + BUILD_MEMORY_BYTES, free_memory_bytes(device)
    if free < needed:
        gib = 1 << 30
        raise MemoryError(f"compiling it needs {needed / gib:.1f} GiB, {free / gib:.1f} are free on {device}")
