"""The README's reference is the table's."""

from __future__ import annotations

from pathlib import Path

from bridge.commands.generate_docs import markdown, updated
from engine.shared.table import TABLE

README = Path(__file__).parents[3] / "README.md"


def test_the_readme_holds_the_table_as_it_is() -> None:
    text = README.read_text(encoding="utf-8")
    assert updated(text) == text, "run `python -m bridge.commands.generate_docs`"
    assert markdown() in text


def test_every_parameter_is_in_it() -> None:
    assert all(f"| `{name}` |" in markdown() for name in TABLE)
