"""Abuse test: what strangers send and what slips of a hand do, against a real show in a scratch folder.

Prints a Markdown table. Everything stays on the loopback and in the scratch folder.
"""

from __future__ import annotations

import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from bridge.errors import UserError
from bridge.stress.real_show import Probe, RealShow
from bridge.stress.scratch import HubTrap, Scratch

#: Limits: answer over OSC and gap between two pictures in ms, growth of memory in MiB.
MAX_ANSWER_MS, MAX_GAP_MS, MAX_GROWTH_MIB = 100, 100, 64
#: Answers that are measured after each abuse.
ANSWERS = 20
#: Longest time from the request to end until the show has ended, in seconds.
MAX_END_SECONDS = 5.0
SHOW_OPTIONS = ("--accelerate", "eager", "--size", "128x128", "--prompt", "neon tunnel", "--seed", "7", "--offline")
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
    with tempfile.TemporaryDirectory(prefix="phosphene-abuse-") as folder, HubTrap() as hub, ExitStack() as cleanup:
        scratch = Scratch(Path(folder), hub.url)
        show: RealShow | None = None
        for abuse in abuses:
            if abuse.posix and sys.platform == "win32":
                continue
            if show is not None and not show.is_usable():
                show.end()  # two shows never save to one session
                show = None
            if show is None:
                show = cleanup.enter_context(RealShow(scratch, *SHOW_OPTIONS, descriptors=descriptors))
            outcomes.append(try_abuse(Target(show, scratch, hub, seconds), abuse))
            print(format_row(abuse, outcomes[-1]), flush=True)
        seconds_to_end = show.end() if show is not None else 0.0
    good = not any(outcome.problems for outcome in outcomes) and seconds_to_end <= MAX_END_SECONDS
    print(
        f"\nthe show ended {seconds_to_end:.1f} s after it was asked to; limits: {MAX_END_SECONDS:.0f} s,"
        f" OSC answers within {MAX_ANSWER_MS} ms, gap at most {MAX_GAP_MS} ms, memory within {MAX_GROWTH_MIB} MiB,"
        f" /health 200, every value as it was: {'passed' if good else 'FAILED'}"
    )
    return good


def try_abuse(target: Target, abuse: Abuse) -> Outcome:
    """Carry out one abuse, and measure the show meanwhile and afterwards. Raises UserError where it is not live."""
    show = target.show
    show.wait_until(lambda: show.is_healthy() and show.status()["gap_ms"] <= MAX_GAP_MS, "healthy show without a gap")
    before, memory, printed = show.status(), show.bridge_memory_mib(), len(show.lines)
    probe, problems, held = Probe(show), list[str](), ""
    try:
        held = abuse.attack(target)
    except (AbuseSucceeded, UserError, OSError) as error:
        problems.append(str(error))
    finally:
        probe.close()
    if show.process.poll() is not None or not show.is_usable():
        ended = "the show has ended" if show.process.poll() is not None else "the show no longer answers"
        return Outcome("", math.inf, math.inf, 0.0, (), [*problems, ended])
    problems += _settle(show, memory)
    answer_ms, after = max(show.ask() for _ in range(ANSWERS)) * 1000, show.status()
    gap_ms, values = max(probe.gap_ms, float(after["gap_ms"])), after["parameters"]
    lost = [name for name, value in before["parameters"].items() if values.get(name) != value]
    checks = {
        "OSC answers late": answer_ms > MAX_ANSWER_MS,
        "gap on the output": gap_ms > MAX_GAP_MS,
        "values lost": bool(lost),
        "uncaught error in the log": any(line.startswith("Traceback") for line in show.lines[printed:]),
    }
    problems += [problem for problem, happened in checks.items() if happened]
    return Outcome(held, answer_ms, gap_ms, show.bridge_memory_mib() - memory, lost, problems)


def _settle(show: RealShow, memory: float) -> list[str]:
    """Wait until the show is healthy and its memory back; return what is not."""
    end = time.perf_counter() + SETTLE_SECONDS
    while time.perf_counter() < end:
        if show.is_healthy() and show.bridge_memory_mib() - memory < MAX_GROWTH_MIB:
            return []
        time.sleep(0.1)
    healthy = show.is_healthy()
    return [f"{show.bridge_memory_mib() - memory:.0f} MiB more memory" if healthy else "/health does not answer 200"]


def format_row(abuse: Abuse, outcome: Outcome) -> str:
    """Return the row of the table."""
    held = f"FAILED: {'; '.join(outcome.problems)}" if outcome.problems else outcome.held
    held = " ".join(held.replace("|", "/").split())
    return (
        f"| {abuse.name} | {held} | {outcome.answer_ms:.1f} ms | {outcome.gap_ms:.0f} ms"
        f" | {outcome.growth_mib:+.0f} MiB | {', '.join(outcome.lost) or 'as before'} |"
    )
