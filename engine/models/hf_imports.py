"""Imports of diffusers and transformers: without the modules that nothing here needs, and without terminal output."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from engine.shared.hub_environment import configure_hub


def import_quietly() -> None:
    """Import diffusers and transformers, with their progress bars and hints turned off."""
    configure_hub(offline=False)
    # The package's own import reads the sources of all its models, as transformers itself has just done.
    _import_lazily("transformers.models")
    import diffusers
    import transformers

    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()


def imported_files() -> Iterator[Path]:
    """Yield the files that this process has read to import its modules, in that order."""
    for name, module in list(sys.modules.items()):
        file, bytecode = getattr(module, "__file__", None), getattr(getattr(module, "__spec__", None), "cached", None)
        if file:
            yield Path(bytecode if bytecode and os.path.exists(bytecode) else file)
        if name == "transformers" and file:  # it reads the sources of all its models during its import
            for source in Path(module.__path__[0], "models").rglob("*.py"):
                if not source.name.startswith(("convert_", "modular_")):
                    yield source


def _import_lazily(name: str) -> None:
    """Import a package without running its ``__init__``, until someone asks for a name that is no submodule."""
    if name in sys.modules or (spec := importlib.util.find_spec(name)) is None or spec.loader is None:
        return
    package, loader, has_run = importlib.util.module_from_spec(spec), spec.loader, False

    def load_attribute(attribute: str) -> Any:
        nonlocal has_run
        if not attribute.startswith("__"):
            if not has_run:
                has_run = True
                loader.exec_module(package)  # transformers replaces the module in sys.modules here
            if (replacement := sys.modules[name]) is not package:
                return getattr(replacement, attribute)
        raise AttributeError(f"module {name!r} has no attribute {attribute!r}")

    package.__dict__["__getattr__"] = load_attribute
    sys.modules[name] = package
