"""TOML bombs: no file up to its size limit takes seconds or hundreds of megabytes, whatever is in it."""

from __future__ import annotations

import random
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from bridge.control.map_file import MAX_MAP_BYTES, read_map
from bridge.performance.cue_list import MAX_CUE_LIST_BYTES, MAX_CUES, read_cue_list
from bridge.performance.preset_file import MAX_PRESET_BYTES, read_preset
from bridge.toml_lines import MAX_KEY_PARTS, MAX_NESTING, check_bounds
from engine.shared.parameter import InvalidValue

MAX_SECONDS, MAX_MEMORY_MIB = 1.0, 64.0
#: What a document repeats, ``#`` for a number that differs each time, between a start and an end.
REPEATED = {
    "dots": ("", "a.", "a = 1"),
    "quoted dots": ("", "'a' . ", "a = 1"),
    "dots in a header": ("[", "a.", "a]\n"),
    "dots in an inline table": ("a = {", "a.", "a = 1}"),
    "lists": ("a = ", "[", ""),
    "closed lists": ("a = [", "[],", "]"),
    "inline tables": ("a = ", "{a=", ""),
    "many inline tables": ("a = [", "{a.b=1},", "]"),
    "keys": ("", "a#=1\n", ""),
    "quoted keys": ("", '"\\n#"=1\n', ""),
    "long escapes": ("", '"\\U0001f600#"=1\n', ""),
    "tables under dotted keys": ("", "a#.a={}\n", ""),
    "lists under dotted keys": ("", "a#.a.a.a.a.a.a=[]\n", ""),
    "tables": ("", "[a#]\n", ""),
    "deep tables": ("", "[a#.a.a.a.a.a.a.a]\n", ""),
    "lists of tables": ("", "[[a]]\n", ""),
    "cues": ("", "[[cue]]\n", ""),
    "bindings": ("", "[[map]]\n", ""),
    "numbers": ("a = [", "1.5,", "]"),
    "elements": ("a = [", "1,", "]"),
    "one long number": ("title = 1", "0", ""),
    "one long hexadecimal number": ("title = 0x1", "f", ""),
    "one long fraction": ("title = 1.", "0", ""),
    "one long name": ("", "a", " = 1"),
    "escapes": ('title = "', "\\n", '"'),
    "long escapes in a value": ('a = "', "\\U0001f600", '"'),
    "lines of text": ('a = """', "\\\n", '"""'),
    "quotes in text": ('a = """', '\\"""\\"', '"""'),
    "text without end": ("", '"""\\"\n', ""),
    "literal text without end": ("", "'''a\n'\n", ""),
    "comments": ("", "#\n", "a = "),
    "blank lines": ("", "\n", "a = "),
    "a wrong type after many elements": ("title = [", "{a=1},", "]"),
}


def repeat(start: str, unit: str, end: str, size: int) -> str:
    """Return a document of ``size`` bytes at most."""
    count = max(0, (size - len(start) - len(end)) // (len(unit) + 5 * ("#" in unit)))
    parts = [unit.replace("#", f"{i:06x}") for i in range(count)] if "#" in unit else [unit] * count
    return (start + "".join(parts) + end)[:size]


def check_cost(read: Callable[[], object]) -> None:
    """Check the processor's seconds and the MiB that reading takes. An invalid file is refused in one line."""

    def attempt() -> str:
        try:
            read()
        except InvalidValue as error:
            return str(error)
        return ""

    start = time.thread_time()
    problem = attempt()
    seconds = time.thread_time() - start
    tracemalloc.start()
    attempt()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert "\n" not in problem
    assert len(problem) < 1000
    assert seconds < MAX_SECONDS
    assert peak / 2**20 < MAX_MEMORY_MIB


@pytest.mark.parametrize("name", REPEATED)
def test_no_file_takes_long_or_much_memory(name: str, tmp_path: Path) -> None:
    """Cue lists have the largest limit, and all files are read by one function."""
    path = tmp_path / "bomb.toml"
    path.write_text(repeat(*REPEATED[name], MAX_CUE_LIST_BYTES), encoding="utf-8")
    check_cost(lambda: read_cue_list(path, "bomb"))


@pytest.mark.parametrize("name", ["bindings", "tables under dotted keys"])
def test_no_desk_map_takes_long_or_much_memory(name: str, tmp_path: Path) -> None:
    path = tmp_path / "bomb.toml"
    path.write_text(repeat(*REPEATED[name], MAX_MAP_BYTES), encoding="utf-8")
    check_cost(lambda: read_map(path, "bomb"))


@pytest.mark.parametrize("seed", range(30))
def test_no_random_file_takes_long_or_much_memory(seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    tokens = [unit for _, unit, _ in REPEATED.values()] + ['"', "'", '"""', "'''", "{", "}", "]", ",", "=", "\n", "\\"]
    few = rng.sample(tokens, 4)
    text = "".join(rng.choice(few).replace("#", f"{rng.randrange(10**6)}") for _ in range(20_000))
    path = tmp_path / "bomb.toml"
    path.write_text(text[:MAX_PRESET_BYTES], encoding="utf-8")
    check_cost(lambda: read_preset(path, "bomb"))


def test_a_bomb_is_refused_by_its_shape_and_line() -> None:
    for text, message in (
        ("a = 1\nb" + ".b" * MAX_KEY_PARTS + " = 1", "a key of more than 8 parts .at line 2."),
        ("\n\na = " + "[" * (MAX_NESTING + 1), "more than 32 brackets within each other .at line 3."),
        ("a = 1" + "0" * 2000, "a key or number of more than 1024 characters"),
        ("a." * 100_000, "a key of more than"),
        ("[a]\n" * 50_000, "more than 40000 tables"),
        ("a=1\n" * 110_000, "more than 100000 values"),
    ):
        with pytest.raises(ValueError, match=message):
            check_bounds(text)


def test_brackets_and_dots_in_text_and_comments_do_not_count() -> None:
    inside = "." * 100 + "[" * 100 + "{" * 100
    check_bounds(f"a = \"{inside}\\\"{inside}\"\nb = '{inside}' # {inside}\nc = '''\n{inside}''{inside}'''\n")
    check_bounds(f'd = """\n{inside}\\"""{inside}""{inside}"""""\ne = 1 # "{inside}\n')


def test_the_largest_cue_list_is_accepted(tmp_path: Path) -> None:
    path = tmp_path / "long.toml"
    cue = "[[cue]]\nnumber={}\nfade=1.5\nvalues={{mix=0.5,strength=0.25}}\n"
    path.write_text("".join(cue.format(i) for i in range(MAX_CUES)), encoding="utf-8")
    assert len(read_cue_list(path, "long").cues) == MAX_CUES
