"""The parameter table: coercion, clamping, rejection, names."""

from __future__ import annotations

import math
import pickle

import pytest

from engine.shared.parameter import InvalidValue
from engine.shared.snapshot import Snapshot, parse_settings
from engine.shared.table import TABLE, canonical, lookup


@pytest.mark.parametrize(
    ("name", "argument", "expected"),
    [
        ("/strength", 0.25, 0.25),
        ("/strength", 7, 1.0),
        ("/strength", -1.5, 0.0),
        ("/strength", "0.75", 0.75),
        ("/strength", True, 1.0),
        ("/steps", 2.6, 3),
        ("/steps", 99, 50),
        ("/steps", 0, 1),
        ("/seed", 2**40, 2**31 - 1),
        ("/freeze", 1.0, True),
        ("/freeze", 0, False),
        ("/freeze", "off", False),
        ("/prompt", "größer 🌲", "größer 🌲"),
        ("/mode", "Text", "text"),
        ("/mode", 1, "text"),
        ("/guidance/mode", 3.0, "onetime"),
        ("/size", "512", "512x512"),
        ("/size", "640x363", "640x360"),
        ("/size", "99999x1", "2048x64"),
        ("/output/size", "", ""),
        ("/schedule", "699, 399", "699 399"),
        ("/schedule", 499, "499"),
        ("/schedule", "", ""),
        ("/schedule", " ".join(map(str, range(50, 0, -1))), " ".join(map(str, range(50, 0, -1)))),
        ("/regions/reset", "22, 12 12", "12 22"),
        ("/regions/reset", 12, "12"),
        ("/regions/reset", 12.0, "12"),
        ("/regions/reset", "", ""),
    ],
)
def test_a_valid_argument_is_coerced(name: str, argument: object, expected: object) -> None:
    value = TABLE[name].coerce([argument])
    assert value == expected
    assert type(value) is type(expected)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("/strength", ["loud"]),
        ("/strength", [math.nan]),
        ("/strength", [math.inf]),
        ("/strength", ["nan"]),
        ("/strength", []),
        ("/strength", [0.1, 0.2]),
        ("/strength", [b"\x00\x01"]),
        ("/strength", [None]),
        ("/steps", [-math.inf]),
        ("/freeze", ["perhaps"]),
        ("/freeze", [math.nan]),
        ("/prompt", [3]),
        ("/prompt", ["x" * 65536]),
        ("/prompt", ["a\x00b"]),
        ("/mode", ["sideways"]),
        ("/mode", [17]),
        ("/mode", [0.5]),
        ("/size", ["big"]),
        ("/size", [True]),
        ("/schedule", ["100 200"]),
        ("/schedule", ["5000"]),
        ("/schedule", [" ".join(map(str, range(51, 0, -1)))]),
        ("/schedule", ["nan"]),
        ("/regions/reset", ["12 50"]),
        ("/regions/reset", ["-1"]),
        ("/regions/reset", ["twelve"]),
        ("/regions/reset", [12.5]),
    ],
)
def test_an_invalid_argument_is_rejected(name: str, arguments: list[object]) -> None:
    with pytest.raises(InvalidValue, match=name):
        TABLE[name].coerce(arguments)


def test_names_have_several_spellings() -> None:
    for name in ("prompt", "/prompt", "/phosphene/prompt", " prompt/1"):
        assert canonical(name) == "/prompt"
    assert lookup("guidance/mode") is TABLE["/guidance/mode"]
    with pytest.raises(InvalidValue, match="promt"):
        lookup("promt")


def test_the_published_names_exist() -> None:
    names = "/prompt /prompt/2 /prompt/3 /prompt/4 /prompt/1/weight /prompt/4/weight /prompt/blend"
    names += " /negative /seed /seed/2 /seed/mix"
    names += (
        " /mode /strength /steps /schedule /guidance /guidance/mode /guidance/delta /similarity /similarity/threshold"
    )
    names += " /similarity/max_skip /freeze /bypass /blackout /master /model /size"
    assert set(names.split()) <= set(TABLE)


def test_every_default_is_accepted_by_its_parameter() -> None:
    for parameter in TABLE.values():
        assert parameter.coerce([parameter.default]) == parameter.default
        assert parameter.help


def test_a_snapshot_is_complete_and_crosses_processes() -> None:
    snapshot = Snapshot(parse_settings({"strength": "0.3"}), 42)
    other = pickle.loads(pickle.dumps(snapshot))
    assert other.number == 42
    assert dict(other) == dict(snapshot)
    assert other.real("/strength") == 0.3
    assert "/reset" not in other
    with pytest.raises(TypeError):
        other["/strength"] = 1.0
