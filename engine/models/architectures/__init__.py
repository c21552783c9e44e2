"""Architectures, one file each: prompts to conditions, and latents, timesteps and conditions to predictions.

Every module of this folder is imported. The architectures are the classes in them that name a denoiser class.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable, Mapping
from typing import Any

from engine.models.architectures.base import Architecture, Condition

__all__ = [
    "Architecture",
    "Condition",
    "discover",
    "find_architecture",
    "find_named_architecture",
    "find_single_file_architecture",
]


def discover() -> tuple[type[Architecture], ...]:
    """Import the modules of this folder and return the architectures that they define."""
    modules = [importlib.import_module(f"{__name__}.{info.name}") for info in pkgutil.iter_modules(__path__)]
    return tuple(
        value
        for module in modules
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Architecture) and value.__module__ == module.__name__
        if value.denoiser_class
    )


ARCHITECTURES = discover()


def find_architecture(components: Mapping[str, Any]) -> type[Architecture] | None:
    """Return the architecture of a checkpoint's components, None if its denoiser's class is not supported."""
    return _most_derived(architecture for architecture in ARCHITECTURES if architecture.matches(components))


def find_named_architecture(class_names: Mapping[str, str]) -> type[Architecture] | None:
    """Return an architecture for a denoiser of this class, None if there is none; the names are by component."""
    names = class_names.items()
    return next((one for one in ARCHITECTURES if (one.denoiser_component, one.denoiser_class) in names), None)


def find_single_file_architecture(keys: Iterable[str]) -> type[Architecture] | None:
    """Return the architecture of a single file with these weight names, None if they are not recognized."""
    names = list(keys)
    return _most_derived(
        architecture
        for architecture in ARCHITECTURES
        if architecture.single_file_key and any(name.startswith(architecture.single_file_key) for name in names)
    )


def _most_derived(architectures: Iterable[type[Architecture]]) -> type[Architecture] | None:
    return max(architectures, key=lambda architecture: len(architecture.__mro__), default=None)
