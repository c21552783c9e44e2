"""The names under which TouchDesigner lists the textures of other programs."""

import socket


def local_source_name(name):
    """Return the full NDI name of a source on this machine."""
    return f"{socket.gethostname().upper()} ({name})"


def match_ndi_source(listed, name, current=""):
    """Return the full NDI name of the source ``name`` among the ``listed`` ones: ``MACHINE (name)``.

    One on this machine comes first, else the only one on the network. Where several machines have one, or none has,
    it is this machine's name as it should be. ``current`` stays while it is among the candidates.
    """
    suffix = f"({name})"
    matches = [full for full in listed if full.endswith(f" {suffix}")]
    here = [full for full in matches if _short(full[: -len(suffix)]) == _short(socket.gethostname())]
    candidates = here or (matches if len(matches) == 1 else [])
    if current in candidates:
        return current
    return candidates[0] if candidates else local_source_name(name)


def match_sender(listed, name, current=""):
    """Return the texture sender ``name`` as TouchDesigner lists it: ``name`` for Spout, ``App:name`` for Syphon.

    ``current`` stays while it is one of several. An unlisted sender is called ``name``.
    """
    if name in listed:
        return name
    matches = [full for full in listed if full.endswith(f":{name}")]
    if current in matches:
        return current
    return matches[0] if matches else name


def _short(machine):
    """Return a machine's name without its domain, in capitals, at the 15 letters that Windows shows at most."""
    return machine.strip().upper().split(".")[0][:15]
