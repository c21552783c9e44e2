"""The README's reference is the table's."""

from __future__ import annotations

from pathlib import Path

from bridge.reference import markdown, updated
from engine.parameters import TABLE

README = Path(__file__).parent.parent.parent / "README.md"


def test_the_readme_holds_the_table_as_it_is() -> None:
    text = README.read_text(encoding="utf-8")
    assert updated(text) == text, "run `python -m bridge.reference`"
    assert markdown() in text


def test_every_parameter_is_in_it() -> None:
    assert all(f"| `{name}` |" in markdown() for name in TABLE)
