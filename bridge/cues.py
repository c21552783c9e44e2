"""Presets: looks as TOML, by name or by path. Each key is a parameter's name, each value is checked by the table."""

from __future__ import annotations

import tomllib
from importlib.resources import files
from pathlib import Path

from engine.parameters import TABLE, BadValue, Value, lookup


def shipped() -> list[str]:
    """The names of the presets that come with Phosphene."""
    return sorted(path.name.removesuffix(".toml") for path in files("presets").iterdir() if path.name.endswith(".toml"))


def load_preset(name: str) -> dict[str, Value]:
    """The values of the preset called ``name``, or of the file at that path. Raises BadValue where it is missing or wrong."""
    path = Path(name).expanduser()
    resource = path if path.suffix == ".toml" else files("presets").joinpath(f"{name}.toml")
    if not resource.is_file():
        raise BadValue(f"no preset {name!r}; there are {', '.join(shipped())}, or give the path of a .toml file")
    try:
        content = tomllib.loads(resource.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadValue(f"preset {name!r} is no TOML: {error}") from None
    values: dict[str, Value] = {}
    for key, value in content.items():
        parameter = lookup(key)
        if parameter.kind == "trigger" or parameter.name not in TABLE:
            raise BadValue(f"preset {name!r}: {key} is no value to keep")
        values[parameter.name] = parameter.coerce([value])
    return values
