"""CI's second run leaves out what has passed in the first, and nothing else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.house.sources import ROOT

CASES = """
import pytest
def test_passes(): pass
def test_fails(): assert False
def test_skips(): pytest.skip("no program")
@pytest.fixture
def broken():
    yield
    raise OSError
def test_fails_afterwards(broken): pass
"""


def _run(folder: Path, *options: str) -> str:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.conftest", "--rootdir", str(folder), "-c", "none.ini"]
    ran = subprocess.run(
        [*command, *options], cwd=folder, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    return ran.stdout


def test_only_tests_that_passed_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "test_cases.py").write_text(CASES, encoding="utf-8")
    (tmp_path / "none.ini").write_text("[pytest]\n", encoding="utf-8")
    assert "2 passed, 1 skipped, 1 error" in (first := _run(tmp_path, "--record-passed=passed")), first
    assert (tmp_path / "passed").read_text(encoding="utf-8") == "test_cases.py::test_passes\n"
    second = _run(tmp_path, "--except-passed=passed")
    assert "1 failed, 1 passed, 1 skipped, 1 deselected, 1 error" in second, second


def test_ci_gives_the_file_as_one_argument() -> None:
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    for option in ("--record-passed", "--except-passed"):  # apart, pytest would take the file for a folder of tests
        assert script.count(option) == script.count(f'{option}="$work/') == 1
