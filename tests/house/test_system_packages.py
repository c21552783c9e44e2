"""Tests that need a system package: the mark that skips them, and the line that ends the run."""

from __future__ import annotations

import pytest

from tests.requirements_system import PACKAGES, needs, summarise


@pytest.mark.parametrize("program", ["oscsend", "chromium", "chromedriver", "qlcplus"])
def test_a_missing_program_skips_with_its_package(program: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not needs(program).args[0] or "system package" in needs(program).kwargs["reason"]
    monkeypatch.setenv("PATH", "")
    mark = needs(program)
    assert mark.args == (True,)
    assert mark.kwargs["reason"].split()[-1] in PACKAGES.values()


def test_the_run_ends_with_one_line_that_installs_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    reasons = [needs("chromium", "chromedriver").kwargs["reason"], needs("oscsend").kwargs["reason"], "needs Windows"]
    expected = "2 tests skipped for want of system packages: apt install liblo-tools chromium chromium-driver"
    assert summarise(reasons) == expected
    assert summarise(["needs a CUDA device"]) == ""
