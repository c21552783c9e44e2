"""Each abuse once, against the real command: what must hold held, and the show is as it was."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bridge.errors import UserError
from bridge.stress.abuse import (
    MAX_ANSWER_MS,
    MAX_GAP_MS,
    MAX_GROWTH_MIB,
    SHOW_OPTIONS,
    Abuse,
    AbuseSucceeded,
    Outcome,
    Target,
    find_abuses,
    format_row,
    require,
    try_abuse,
)
from bridge.stress.abuse_commands import COMMANDS
from bridge.stress.abuse_files import FILES
from bridge.stress.abuse_network import NETWORK
from bridge.stress.real_show import RealShow
from bridge.stress.scratch import HubTrap, Scratch
from tests.waiting import thorough

pytestmark = pytest.mark.slow
ABUSES = (*NETWORK, *FILES, *COMMANDS)
#: Open files and sockets that the show may have, and seconds per kind of flood.
DESCRIPTORS, FLOOD_SECONDS = 256, 1.0


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    with HubTrap() as hub:
        scratch = Scratch(tmp_path_factory.mktemp("abuse"), hub.url)
        with RealShow(scratch, *SHOW_OPTIONS, descriptors=DESCRIPTORS) as show:
            yield Target(show, scratch, hub, FLOOD_SECONDS)
        assert show.process.returncode == 0, show.lines[-3:]


#: Misused commands have tests of their own beside these.
CASES = [pytest.param(abuse, id=abuse.name, marks=[thorough] if abuse in COMMANDS else []) for abuse in ABUSES]


@pytest.mark.parametrize("abuse", CASES)
def test_a_show_holds_against(target: Target, abuse: Abuse) -> None:
    if abuse.posix and sys.platform == "win32":
        pytest.xfail("namespaces of Linux")
    outcome = try_abuse(target, abuse)
    print(format_row(abuse, outcome))
    # This machine also runs the attacker: the limit of the gap alone is wider than that of the command.
    problems = [problem for problem in outcome.problems if problem != "gap on the output"]
    assert not problems
    assert outcome.answer_ms <= MAX_ANSWER_MS
    assert outcome.gap_ms <= MAX_GAP_MS + 50
    assert outcome.growth_mib <= MAX_GROWTH_MIB
    assert not outcome.lost


def test_a_show_that_suffers_is_reported(target: Target) -> None:
    before = target.show.status()["parameters"]["/prompt"]

    def set_prompt(target: Target) -> str:
        target.show.send("/prompt", "somebody's text")
        target.show.wait_until(
            lambda: target.show.status()["parameters"]["/prompt"] == "somebody's text", "changed prompt"
        )
        require(False, "the prompt was changed")
        return "held"

    outcome = try_abuse(target, Abuse("a changed prompt", set_prompt))
    target.show.send("/prompt", before)
    assert outcome.lost == ["/prompt"]
    assert outcome.problems[:2] == ["the prompt was changed", "values lost"]
    assert "FAILED: the prompt was changed" in format_row(Abuse("a changed prompt", set_prompt), outcome)


def test_abuses_are_selected_by_name() -> None:
    assert find_abuses(ABUSES, None) == list(ABUSES)
    assert [abuse.name for abuse in find_abuses(ABUSES, ["floods"])] == ["floods"]
    with pytest.raises(UserError, match="lightning"):
        find_abuses(ABUSES, ["lightning"])
    with pytest.raises(AbuseSucceeded, match="a problem"):
        require(0, "a problem")


def test_a_row_has_one_line() -> None:
    outcome = Outcome("", 1.0, 2.0, 0.0, (), ["first\nsecond | third"])
    row = format_row(ABUSES[0], outcome)
    assert "\n" not in row
    assert row.count("|") == 7


def test_the_hub_trap_counts_requests(tmp_path: Path) -> None:
    import urllib.error
    import urllib.request

    with HubTrap() as hub:
        assert Scratch(tmp_path, hub.url).environment["HF_ENDPOINT"] == hub.url
        with pytest.raises(urllib.error.HTTPError):
            urllib.request.urlopen(f"{hub.url}/api/models/a/b", timeout=5)
        assert hub.requests == ["/api/models/a/b"]
