"""diffusers and transformers: imported without what nothing here needs of them at once, and kept off the terminal."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def import_quietly() -> None:
    """Imports both. One clear line of ours is enough: the libraries' bars and hints stay off the terminal."""
    _import_lazily(
        "transformers.models"
    )  # it would read the sources of all its models, as transformers itself has just done
    import diffusers
    import transformers

    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()


def imported_files() -> Iterator[Path]:
    """The files that this process has read to import what it has, in that order."""
    for name, module in list(sys.modules.items()):
        file, bytecode = getattr(module, "__file__", None), getattr(getattr(module, "__spec__", None), "cached", None)
        if file:
            yield Path(bytecode if bytecode and os.path.exists(bytecode) else file)
        if name == "transformers" and file:  # it reads the sources of all its models as it begins
            for source in Path(module.__path__[0], "models").rglob("*.py"):
                if not source.name.startswith(("convert_", "modular_")):
                    yield source


def _import_lazily(name: str) -> None:
    """Has the package's modules found without running its own ``__init__``, which is run when a name is asked for that no module has."""
    if name in sys.modules or (spec := importlib.util.find_spec(name)) is None or spec.loader is None:
        return
    package, loader, read = importlib.util.module_from_spec(spec), spec.loader, False

    def missing(attribute: str) -> Any:
        nonlocal read
        if not attribute.startswith("__"):
            if not read:
                read = True
                loader.exec_module(package)  # which puts another module in its own place
            if (whole := sys.modules[name]) is not package:
                return getattr(whole, attribute)
        raise AttributeError(f"module {name!r} has no attribute {attribute!r}")

    package.__dict__["__getattr__"] = missing
    sys.modules[name] = package
