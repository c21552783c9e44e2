"""TOML files: one line for whatever is wrong with one, and the line numbers of keys."""

from __future__ import annotations

import random
import tomllib
from pathlib import Path
from typing import Any

import msgspec
import pytest

from bridge.toml_files import FieldError, is_valid_name, list_toml_files, read_toml
from bridge.toml_lines import KeyPath, line_of
from engine.shared.parameter import InvalidValue


class Lamp(msgspec.Struct, forbid_unknown_fields=True, rename={"levels": "from"}):
    name: str
    levels: tuple[float, float] = (0.0, 1.0)
    extra: dict[str, Any] = {}

    def __post_init__(self) -> None:
        if "bad" in self.extra:
            raise FieldError(("extra", "bad"), "extra must not be bad")


class Lamps(msgspec.Struct, forbid_unknown_fields=True):
    title: str = ""
    lamp: list[Lamp] = []
    rest: dict[str, Any] = {}


def read(path: Path, content: bytes, rest: str = "") -> Lamps:
    path.write_bytes(content)
    return read_toml(path, "rig 'a'", 1000, Lamps, rest)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"x" * 1001, "rig 'a' is larger than 1000 bytes"),
        (b"title = '\xff'\n", "rig 'a' is not UTF-8: byte 9 is invalid"),
        (b"title = \n", "rig 'a' is not valid TOML: .*line 1"),
        (b"title = 1" + b"0" * 900 + b"\n", "rig 'a', line 1: title takes text, got 10000"),
        (b"title = " + b"[" * 900 + b"\n", "rig 'a' is not valid TOML"),
        (b"\ntitle = [1]\n", r"rig 'a', line 2: title takes text, got \[1\]"),
        (b"title = ''\nsize = 3\n", "rig 'a', line 2: unknown key 'size'; the keys are title, lamp, rest"),
        (b"[[lamp]]\nname = 'a'\n\n[[lamp]]\n", "rig 'a', line 4: the key 'name' is missing"),
        (b"[[lamp]]\nname = 'a'\nfrom = [1]\n", r"rig 'a', line 3: from takes a list of 2 values, got \[1\]"),
        (b"[[lamp]]\nname = 'a'\nfrom = [\n  1,\n  'x',\n]\n", "rig 'a', line 5: from takes a number, got 'x'"),
        (b"[[lamp]]\nname = 'a'\n[lamp.extra]\ngood = 1\nbad = 1\n", "rig 'a', line 5: extra must not be bad"),
        (b"[[lamp]]\nname = 'a'\nlevels = [0, 1]\n", "line 3: unknown key 'levels'; the keys are name, from, extra"),
        (b"lamp = [1]\n", "rig 'a', line 1: lamp takes a table, got 1"),
    ],
)
def test_whatever_is_wrong_is_one_line(content: bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidValue, match=message) as raised:
        read(tmp_path / "a.toml", content)
    assert "\n" not in str(raised.value)


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InvalidValue, match="rig 'a' cannot be read: No such file"):
        read_toml(tmp_path / "a.toml", "rig 'a'", 1000, Lamps)


def test_rest_collects_the_keys_that_the_type_does_not_declare(tmp_path: Path) -> None:
    lamps = read(tmp_path / "a.toml", b"title = 'A'\nsize = 3\nrest = 4\n", rest="rest")
    assert (lamps.title, lamps.rest) == ("A", {"size": 3, "rest": 4})


DOCUMENT = (
    '''# [[map]] in a comment
title = """
[[map]]
to = 3
"""
'a.b' = { c = 1, "d\\u0065" = [ { f = 1 }, { f = 2 } ] }
x . y = 1979-05-27 07:32:00
x."y z" = 'it'''
    + "'"
    + '''

[[map]]  # the first
to = 1
[[ map ]]
to = """two ""quotes"""""
from = [
  1.5,  # ]
  [2, 3],
]
[map.sub.deep]
to = +inf
[[map.list]]
n = 1
[[map.list]]
n = 2
[ sub ]
n.o = true
'''
)


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ((), None),
        (("title",), 2),
        (("a.b",), 6),
        (("a.b", "c"), 6),
        (("a.b", "de", 1, "f"), 6),
        (("x",), 7),
        (("x", "y"), 7),
        (("x", "y z"), 8),
        (("map",), 10),
        (("map", 0), 10),
        (("map", 0, "to"), 11),
        (("map", 1), 12),
        (("map", 1, "to"), 13),
        (("map", 1, "from"), 14),
        (("map", 1, "from", 0), 15),
        (("map", 1, "from", 1, 1), 16),
        (("map", 1, "sub", "deep", "to"), 19),
        (("map", 1, "list", 0, "n"), 21),
        (("map", 1, "list", 1, "n"), 23),
        (("sub", "n", "o"), 25),
        (("map", 1, "missing"), 12),
        (("missing",), None),
    ],
)
def test_the_line_of_a_key(path: KeyPath, line: int | None) -> None:
    tomllib.loads(DOCUMENT)
    assert line_of(DOCUMENT, path) == line
    assert line_of(DOCUMENT.replace("\n", "\r\n"), path) == line


def leaves(value: Any, path: KeyPath = ()) -> list[tuple[KeyPath, Any]]:
    """Return the path of each value that is neither a table nor a list."""
    if isinstance(value, dict):
        return [leaf for key, item in value.items() for leaf in leaves(item, (*path, key))]
    if isinstance(value, list):
        return [leaf for index, item in enumerate(value) for leaf in leaves(item, (*path, index))]
    return [(path, value)]


@pytest.mark.parametrize("seed", range(20))
def test_the_line_of_every_key_in_random_documents(seed: int) -> None:
    """Each value is the number of its own line, so the parser itself says where a key is."""
    rng = random.Random(seed)
    lines = ["# a document"]

    def value(depth: int = 0) -> str:
        here = len(lines) + 1
        choices = [
            f"{here}",
            f"[{here}, {here}]",
            f"{{ a = {here}, 'b c'.d = {here} }}",
            f"[[{here}], {{ e = {here} }}]",
        ]
        return choices[rng.randrange(len(choices))]

    for table in range(rng.randint(2, 12)):
        array = rng.random() < 0.6
        lines.append(f"[[entry]] # {table}" if array else f'[table{table}."sub [ {table}"]')
        for key in rng.sample(["k", '"q = 1"', "'l#'", "d.e", "d.'f'", "g"], rng.randint(0, 5)):
            if rng.random() < 0.3:
                lines.append(rng.choice(["", "# k = 1", "   "]))
            lines.append(f"{key} = {value()}  # note")
            if rng.random() < 0.2:
                lines += [f"multi{len(lines)} = [", f"  {len(lines) + 2},", "]"]
            if rng.random() < 0.2:
                lines += [f"text{len(lines)} = '''", "[[entry]]", "k = 1'''"]
    document = "\n".join(lines)
    numbers = [(path, value) for path, value in leaves(tomllib.loads(document)) if isinstance(value, int)]
    assert numbers
    for path, number in numbers:
        assert line_of(document, path) == number, path


def test_names_are_no_paths() -> None:
    assert all(is_valid_name(name) for name in ("a", "My preset 2.5", "a_b-c"))
    assert not any(is_valid_name(name) for name in ("", ".a", "a/b", "a..b", "../a", "a\n", "x" * 65))


def test_toml_files_are_listed_in_order_without_hidden_ones(tmp_path: Path) -> None:
    for name in ("b.toml", "a.toml", ".c.toml", "d.txt"):
        (tmp_path / name).touch()
    assert [path.name for path in list_toml_files([tmp_path, tmp_path / "missing"])] == ["a.toml", "b.toml"]
