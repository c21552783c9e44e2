"""Abuse test: what strangers send and what slips of a hand do, against a real show in a scratch folder.

Prints a Markdown table. Everything stays on the loopback and in the scratch folder.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bridge.errors import UserError
from bridge.stress.real_show import HubTrap, Probe, RealShow, Scratch

#: Limits: answer over OSC and gap between two pictures in ms, growth of memory in MiB.
MAX_ANSWER_MS, MAX_GAP_MS, MAX_GROWTH_MIB = 100, 100, 64
#: Answers that are measured after each abuse.
ANSWERS = 20
#: Longest wait for memory and health to be back, in seconds.
SETTLE_SECONDS = 20.0
COLUMNS = ("Abuse", "What held", "OSC answers after", "Longest gap", "Memory", "Values")


@dataclass(frozen=True)
class Target:
    """What an abuse has at hand: the show, the scratch folder, the hub's stand-in, and the length of a flood."""

    show: RealShow
    scratch: Scratch
    hub: HubTrap
    seconds: float


@dataclass(frozen=True)
class Abuse:
    """One abuse: ``attack`` carries it out, undoes what it set, and returns what held.

    It raises AbuseSucceeded where something did not. One that is ``posix`` is left out on Windows.
    """

    name: str
    attack: Callable[[Target], str]
    posix: bool = False


class AbuseSucceeded(Exception):
    """An abuse did what it must not; the text says what."""


@dataclass(frozen=True)
class Outcome:
    """What was measured around one abuse; ``problems`` is empty where everything held."""

    held: str
    answer_ms: float
    gap_ms: float
    growth_mib: float
    lost: Sequence[str]
    problems: Sequence[str]


def require(condition: object, problem: str) -> None:
    """Raise AbuseSucceeded with ``problem`` unless ``condition`` is true."""
    if not condition:
        raise AbuseSucceeded(problem)


def find_abuses(abuses: Sequence[Abuse], names: Iterable[str] | None) -> list[Abuse]:
    """Return the abuses of these names, or all. Raises UserError for a name that none has."""
    requested = set(names or ())
    if unknown := requested - {abuse.name for abuse in abuses}:
        raise UserError(f"--only takes {', '.join(abuse.name for abuse in abuses)}; got {sorted(unknown)[0]!r}")
    return [abuse for abuse in abuses if not requested or abuse.name in requested]


def run_abuses(abuses: Sequence[Abuse], seconds: float, descriptors: int) -> bool:
    """Carry out each abuse, print a row for each, and return whether everything held."""
    print(f"| {' | '.join(COLUMNS)} |\n{'|---' * len(COLUMNS)}|", flush=True)
    outcomes = []
    arguments = ("--accelerate", "eager", "--size", "128x128", "--prompt", "neon tunnel", "--seed", "7")
    with tempfile.TemporaryDirectory(prefix="phosphene-abuse-") as folder, HubTrap() as hub:
        scratch = Scratch(Path(folder), hub.url)
        with RealShow(scratch, *arguments, descriptors=descriptors) as show:
            target = Target(show, scratch, hub, seconds)
            for abuse in abuses:
                if abuse.posix and sys.platform == "win32":
                    continue
                outcomes.append(try_abuse(target, abuse))
                print(format_row(abuse, outcomes[-1]), flush=True)
    good = not any(outcome.problems for outcome in outcomes)
    print(
        f"\nOSC answers within {MAX_ANSWER_MS} ms, gap at most {MAX_GAP_MS} ms, memory within {MAX_GROWTH_MIB} MiB,"
        f" /health 200, every value as it was: {'passed' if good else 'FAILED'}"
    )
    return good


def try_abuse(target: Target, abuse: Abuse) -> Outcome:
    """Carry out one abuse, and measure the show meanwhile and afterwards."""
    show = target.show
    show.wait_until(show.is_healthy, "healthy show")
    memory, before, errors = show.bridge_memory_mib(), show.status(), count_tracebacks(show)
    probe, problems, held = Probe(show), [], ""
    try:
        held = abuse.attack(target)
    except AbuseSucceeded as error:
        problems.append(str(error))
    finally:
        probe.close()
    problems += _settle(show, memory)
    answer = max(show.ask() for _ in range(ANSWERS)) * 1000
    after = show.status()
    growth = show.bridge_memory_mib() - memory
    values = after["parameters"]
    lost = [name for name, value in before["parameters"].items() if values.get(name) != value]
    gap = max(probe.gap_ms, float(after["gap_ms"]))
    if answer > MAX_ANSWER_MS:
        problems.append("OSC answers late")
    if gap > MAX_GAP_MS:
        problems.append("gap on the output")
    if lost:
        problems.append(f"lost {', '.join(lost)}")
    if count_tracebacks(show) > errors:
        problems.append("uncaught error in the log")
    return Outcome(held, answer, gap, growth, lost, problems)


def _settle(show: RealShow, memory: float) -> list[str]:
    """Wait until the show is healthy and its memory back; return what is not."""
    end = time.monotonic() + SETTLE_SECONDS
    while time.monotonic() < end:
        if show.is_healthy() and show.bridge_memory_mib() - memory < MAX_GROWTH_MIB:
            return []
        time.sleep(0.1)
    healthy = show.is_healthy()
    return [f"{show.bridge_memory_mib() - memory:.0f} MiB more memory" if healthy else "/health does not answer 200"]


def count_tracebacks(show: RealShow) -> int:
    """Return how many uncaught errors the show has printed."""
    return sum(line.startswith("Traceback") for line in show.lines)


def format_row(abuse: Abuse, outcome: Outcome) -> str:
    """Return the row of the table."""
    held = f"FAILED: {'; '.join(outcome.problems)}" if outcome.problems else outcome.held
    return (
        f"| {abuse.name} | {held} | {outcome.answer_ms:.1f} ms | {outcome.gap_ms:.0f} ms"
        f" | {outcome.growth_mib:+.0f} MiB | {', '.join(outcome.lost) or 'as before'} |"
    )
