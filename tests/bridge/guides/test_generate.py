"""Generated files match the parameter table."""

from __future__ import annotations

from bridge.guides.generate import outdated_files, parameters_page
from engine.shared.table import TABLE


def test_every_generated_file_is_up_to_date() -> None:
    assert not list(outdated_files()), "run `python -m bridge.guides.generate`"


def test_the_reference_lists_every_parameter_once() -> None:
    page = parameters_page()
    for name in TABLE:
        if not name.startswith("/hook/"):
            assert page.count(f"| `{name}` |") == 1, name


def test_every_description_is_one_short_phrase() -> None:
    for parameter in TABLE.values():
        assert parameter.help[0].isupper(), parameter.name
        assert not parameter.help.endswith("."), parameter.name
        assert len(parameter.help) <= 110, parameter.name
        assert not parameter.help.startswith(("Whether ", "What ", "How ")), parameter.name
