"""Text from outside: parameters take valid Unicode alone, and lines of the log are made of nothing else."""

from __future__ import annotations

import pytest

from engine.shared.errors import first_line
from engine.shared.parameter import InvalidValue
from engine.shared.snapshot import parse_settings
from engine.shared.table import TABLE, lookup
from engine.shared.text import escape_surrogates, is_valid_unicode, to_line

LONE = ("\ud83d", "a\udcffb", "\ude00\ud83d")
VALID = (
    "",
    "é",
    "😀" * 4096,
    "\u2028\u2029",
    "\u202eabc\u202c",
    "e" + "\u0301" * 4000,
    "\ufffe\uffff\U0010ffff",
    "\ufeff",
)


@pytest.mark.parametrize("text", LONE)
def test_no_parameter_takes_a_lone_surrogate(text: str) -> None:
    assert not is_valid_unicode(text)
    for parameter in TABLE.values():
        with pytest.raises(InvalidValue) as caught:
            parameter.coerce([text])
        message = str(caught.value)
        assert message.encode("utf-8").decode().isprintable(), "one line that any log takes"
    with pytest.raises(InvalidValue):
        lookup(text)
    with pytest.raises(InvalidValue):
        parse_settings({text: "1"})


@pytest.mark.parametrize("text", VALID)
def test_other_unicode_is_a_text_like_any(text: str) -> None:
    assert TABLE["/prompt"].coerce([text]) == text
    assert escape_surrogates(text) == text


def test_surrogates_are_spelled_out() -> None:
    assert escape_surrogates("a\udcffb😀") == r"a\udcffb😀"


def test_a_line_is_one_printable_line() -> None:
    assert to_line("gain 1–2 … 😀") == "gain 1–2 … 😀"
    assert to_line("a\nb\x1b[2J\u2028\u202e\ud83d\0") == r"a\nb\x1b[2J\u2028\u202e\ud83d\x00"
    assert to_line("x" * 50, 10) == "x" * 9 + "…"
    assert first_line(ValueError("\n\ud83d at fault\nmore")) == r"\ud83d at fault"


def test_an_error_without_a_text_has_its_name() -> None:
    class Nameless(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    assert first_line(Nameless()) == "Nameless"


@pytest.mark.parametrize("value", [10**400, -(10**400)])
def test_a_number_of_any_length_is_coerced_or_rejected(value: int) -> None:
    for parameter in TABLE.values():
        try:
            coerced = parameter.coerce([value])
        except InvalidValue:
            continue
        assert coerced is not None
