"""The bridge: everything the world touches. Textures, control, the panel and the engine's life. No torch."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def release() -> str:
    """The version that is installed; empty for a checkout that is not."""
    try:
        return version("phosphene")
    except PackageNotFoundError:
        return ""
