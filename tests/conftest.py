"""What every run of the tests has: the last line about missing packages, the short form, and the checks of CI.

CI runs the tests twice, without and with optional programs. The second run leaves out what has passed in the first.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.requirements_system import PLATFORM_MARKERS, summarise
from tests.waiting import MINUTE


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--no-other-skips",
        action="store_true",
        help=f"fail where a test is skipped that is not marked {', '.join(PLATFORM_MARKERS)}",
    )
    parser.addoption("--record-passed", metavar="FILE", help="write the names of the tests that pass to FILE")
    parser.addoption("--except-passed", metavar="FILE", help="leave out the tests that --record-passed wrote to FILE")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect the tests that have passed before, and the thorough ones where PHOSPHENE_MINUTE is under 60."""
    file = config.getoption("--except-passed")
    passed = set(Path(file).read_text(encoding="utf-8").splitlines()) if file else set()
    omitted = [item for item in items if item.nodeid in passed or (MINUTE < 60 and item.get_closest_marker("thorough"))]
    config.hook.pytest_deselected(items=omitted)
    items[:] = [item for item in items if item not in set(omitted)]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Name the packages that would run the skipped tests, and the skips that --no-other-skips rejects."""
    if line := summarise(reason for _, reason in _skips(terminalreporter)):
        terminalreporter.write_line(line, yellow=True)
    if file := terminalreporter.config.getoption("--record-passed"):
        passed = {report.nodeid for report in terminalreporter.stats.get("passed", ()) if report.when == "call"}
        failed = {report.nodeid for key in ("failed", "error") for report in terminalreporter.stats.get(key, ())}
        Path(file).write_text("".join(f"{name}\n" for name in sorted(passed - failed)), encoding="utf-8")
    for test, reason in _other_skips(terminalreporter):
        terminalreporter.write_line(f"skipped, but should run here: {test}: {reason}", red=True)


def pytest_sessionfinish(session: pytest.Session) -> None:
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None and any(_other_skips(reporter)) and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def _skips(reporter: pytest.TerminalReporter) -> Iterator[tuple[pytest.TestReport | pytest.CollectReport, str]]:
    for report in reporter.stats.get("skipped", ()):
        if isinstance(report.longrepr, tuple):
            yield report, report.longrepr[2].removeprefix("Skipped: ")


def _other_skips(reporter: pytest.TerminalReporter) -> Iterator[tuple[str, str]]:
    """Yield (test, reason) for the skips that --no-other-skips rejects."""
    if reporter.config.getoption("--no-other-skips"):
        for report, reason in _skips(reporter):
            if not set(PLATFORM_MARKERS) & set(getattr(report, "keywords", ())):
                yield report.nodeid, reason
