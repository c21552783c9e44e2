"""The bridge: everything around the engine. Textures, control, the panel and the engine process's life. No torch."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def release() -> str:
    """Return the installed version; empty for a checkout that is not installed."""
    try:
        return version("phosphene")
    except PackageNotFoundError:
        return ""
