"""Textures in and out, opened by URL. One module in this folder is one transport, and registers itself.

A module takes part if it assigns a ``Transport`` to ``TRANSPORT`` and is named like its scheme. It is imported when
its scheme is opened; the platform's package that it needs is imported when the source or sink opens.
"""

from __future__ import annotations

import importlib
import pkgutil

from bridge.textures.base import PlaceholderSource, Sink, Source, TextureError, Transport

__all__ = [
    "Sink",
    "Source",
    "TextureError",
    "Transport",
    "default_sender",
    "default_sinks",
    "default_source",
    "find_transport",
    "open_default_source",
    "open_sink",
    "open_source",
    "transports",
]


def transports() -> list[Transport]:
    """Return all transports in alphabetical order of their schemes. Imports their modules."""
    modules = sorted(module.name for module in pkgutil.iter_modules(__path__))
    return [transport for name in modules if (transport := find_transport(name)) is not None]


def find_transport(scheme: str) -> Transport | None:
    """Return the transport with this scheme, or None. Imports its module alone."""
    if scheme not in {module.name for module in pkgutil.iter_modules(__path__)}:
        return None
    return getattr(importlib.import_module(f"{__name__}.{scheme}"), "TRANSPORT", None)


def open_source(url: str) -> Source:
    """Open the source at ``url``. Raises TextureError, with the sources of this platform if there is no such scheme."""
    return _build_source(url).open()


def open_sink(url: str) -> Sink:
    """Return the sink at ``url``, which opens with the first frame. Raises TextureError as ``open_source`` does."""
    transport, name = _resolve(url, "sink")
    assert transport.sink is not None
    return transport.sink(url, name)


def open_default_source() -> Source:
    """Open the source of ``phosphene run`` without ``--source``: a pattern, until ``default_sender`` is there."""
    sender_url = default_sender()
    if sender_url is None:
        return open_source(default_source())
    return PlaceholderSource(_build_source(default_source()), _build_source(sender_url)).open()


def default_source() -> str:
    """Return the URL of what ``phosphene run`` without ``--source`` shows at once: a moving pattern."""
    url = _default("source")
    assert url is not None, "patterns need no package"
    return url


def default_sender() -> str | None:
    """Return the URL of the sender that replaces the default source; None without texture sharing on this platform."""
    return _default("sender")


def default_sinks() -> list[str]:
    """Return the sinks of ``phosphene run`` without ``--sink``: the platform's texture sharing, else NDI, else none."""
    url = _default("sink")
    assert url is not None, "the null sink needs no package"
    return [url]


def _default(role: str) -> str | None:
    """Return the URL of the first usable transport, by rank, that has a default in this role; None if none has."""
    for transport in sorted(transports(), key=lambda transport: transport.rank):
        name = getattr(transport, f"default_{role}")
        if name is not None and not transport.unavailable_reason():
            return f"{transport.scheme}:{name}"
    return None


def _build_source(url: str) -> Source:
    """Return the source at ``url``, not yet open. Raises TextureError as ``open_source`` does."""
    transport, name = _resolve(url, "source")
    assert transport.source is not None
    return transport.source(url, name)


def _resolve(url: str, role: str) -> tuple[Transport, str]:
    """Return a usable transport that has ``role``, "source" or "sink", and the part of ``url`` after the scheme."""
    scheme, colon, name = url.partition(":")
    transport = find_transport(scheme) if colon else None
    if transport is None or getattr(transport, role) is None:
        usable = [other for other in transports() if other.on_this_platform and getattr(other, role) is not None]
        schemes = " ".join(f"{other.scheme}:" for other in usable)
        raise TextureError(f"{url!r} is not a {role}; available here: {schemes}")
    reason = transport.unavailable_reason()
    if reason:
        raise TextureError(f"{url}: {reason}")
    return transport, name
