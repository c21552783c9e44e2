"""Textures in and out. One file a transport, opened by URL; a transport's package is imported when it is asked for."""

from __future__ import annotations

import importlib
import sys
from urllib.parse import parse_qsl

from bridge.textures.base import Sink, Source, TextureError

__all__ = ["SCHEMES", "Sink", "Source", "TextureError", "default_sinks", "default_source", "open_sink", "open_source"]

#: Scheme → module, source class, sink class.
SCHEMES: dict[str, tuple[str, str, str]] = {
    "pattern": ("pattern", "PatternSource", ""),
    "file": ("file", "FileSource", "FileSink"),
    "camera": ("camera", "CameraSource", ""),
    "ndi": ("ndi", "NdiSource", "NdiSink"),
    "spout": ("spout", "SpoutSource", "SpoutSink"),
    "syphon": ("syphon", "SyphonSource", "SyphonSink"),
    "touchshm": ("touchshm", "TouchSource", "TouchSink"),
    "null": ("null", "", "NullSink"),
}
_ELSEWHERE = {"spout": "win32", "touchshm": "win32", "syphon": "darwin"}


def open_source(url: str) -> Source:
    """The source that ``url`` means, open. Raises TextureError with what is available here."""
    kind, rest = _found(url, 1)
    if kind.__name__ == "PatternSource":
        name, _, query = rest.partition("?")
        return kind(url, name, dict(parse_qsl(query))).open()
    return kind(url, rest).open()


def open_sink(url: str) -> Sink:
    """The sink that ``url`` means; its transport opens with the first frame. Raises TextureError with what is available here."""
    kind, rest = _found(url, 2)
    return kind(url, rest)


def default_source() -> str:
    """What ``run`` reads without ``--source``: the platform's texture sharing where it can be used, else a moving pattern."""
    scheme = {"win32": "spout", "darwin": "syphon"}.get(sys.platform)
    if scheme and not importlib.import_module(f"bridge.textures.{scheme}").available():
        return f"{scheme}:phosphene-in"
    return "pattern:plasma"


def default_sinks() -> list[str]:
    """Where ``run`` sends without ``--sink``: the platform's texture sharing, else NDI, else nowhere but the preview."""
    for scheme in ({"win32": "spout", "darwin": "syphon"}.get(sys.platform), "ndi"):
        if scheme and not importlib.import_module(f"bridge.textures.{scheme}").available():
            return [f"{scheme}:phosphene-out"]
    return ["null:"]


def schemes(direction: int) -> list[str]:
    """The schemes that this platform has, for sources (1) or sinks (2)."""
    return [s for s, row in SCHEMES.items() if row[direction] and _ELSEWHERE.get(s, sys.platform) == sys.platform]


def _found(url: str, direction: int):  # type: ignore[no-untyped-def]
    scheme, colon, rest = url.partition(":")
    row = SCHEMES.get(scheme)
    role = "source" if direction == 1 else "sink"
    here = " ".join(f"{s}:" for s in schemes(direction))
    if not colon or row is None or not row[direction]:
        raise TextureError(f"{url!r} is no {role}; available here: {here}")
    module = importlib.import_module(f"bridge.textures.{row[0]}")
    return getattr(module, row[direction]), rest
