"""The page on the Python API: its imports work, and its signatures are those of the code."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import pytest

PAGE = (Path(__file__).parents[2] / "bridge" / "guides" / "python-api.md").read_text(encoding="utf-8")
NAMES: dict[str, Any] = {}
exec(re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)[0], NAMES)
#: Heading and the signature below it.
SIGNATURES = re.findall(r"^## (\w+)\n\n`(\w+)\((.*?)\)(?: -> .*)?`$", PAGE, re.MULTILINE)


def parameters(text: str) -> dict[str, str]:
    """Return the parameters of a signature as the page writes them, by name; empty text where there is no default."""
    parts = re.split(r", (?=\w)", text)
    return {part.partition("=")[0]: part.partition("=")[2] for part in parts}


def test_every_name_has_a_section() -> None:
    assert [heading for heading, _, _ in SIGNATURES] == [
        "Frame",
        "Snapshot",
        "EngineOptions",
        "load",
        "Stream",
        "render",
    ]
    assert all(heading == name for heading, name, _ in SIGNATURES)


@pytest.mark.parametrize(("name", "text"), [(name, text) for name, _, text in SIGNATURES])
def test_a_signature_is_that_of_the_code(name: str, text: str) -> None:
    actual = inspect.signature(NAMES[name]).parameters
    documented = parameters(text)
    assert list(documented) == list(actual)[: len(documented)]
    undocumented = list(actual.values())[len(documented) :]
    assert all(parameter.default is not inspect.Parameter.empty for parameter in undocumented)
    for parameter, default in documented.items():
        expected = actual[parameter].default
        if default and "time" not in default:
            assert eval(default, {}) == expected
        elif not default:
            assert expected is inspect.Parameter.empty


def test_the_methods_of_a_stream_are_those_of_the_code() -> None:
    rows = re.findall(r"^\| `(\w+)\((.*?)\)` \|", PAGE, re.MULTILINE)
    assert [name for name, _ in rows] == ["apply", "settle", "step", "restart", "close"]
    for name, text in rows:
        actual = list(inspect.signature(getattr(NAMES["Stream"], name)).parameters)[1:]
        assert list(parameters(text)) == (actual or [""]), name
