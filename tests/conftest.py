"""What every run of the tests has: the last line about missing packages, the short form, and the check of skips."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.requirements_system import PLATFORM_MARKERS, summarise
from tests.waiting import MINUTE


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--no-other-skips",
        action="store_true",
        help=f"fail where a test is skipped that is not marked {', '.join(PLATFORM_MARKERS)}",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect the thorough tests where PHOSPHENE_MINUTE is under 60."""
    if MINUTE >= 60:
        return
    thorough = [item for item in items if item.get_closest_marker("thorough")]
    config.hook.pytest_deselected(items=thorough)
    items[:] = [item for item in items if item not in thorough]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Name the packages that would run the skipped tests, and the skips that --no-other-skips rejects."""
    if line := summarise(reason for _, reason in _skips(terminalreporter)):
        terminalreporter.write_line(line, yellow=True)
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
