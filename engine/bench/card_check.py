"""``python -m engine.bench.card_check``: nine minutes on a card that is lent, all that only a card can show.

Each check has seconds of its own, and stops there: its rows say how far it came. What needs CUDA is reported as not run
on other devices. The result is printed and written as JSON, with the device and the date.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from engine.bench.card_checks import CHECKS, Card, Check, Deadline
from engine.bench.measure import Row
from engine.models import pick_device
from engine.models.hf_imports import import_quietly
from engine.runtime.device import use_device
from engine.shared.errors import first_line
from engine.shared.files import claim_new, write_atomically

#: Seconds of all checks together. The budgets of the checks add up to less.
TOTAL_SECONDS = 540.0
#: Shortest time in which a check can show anything, in seconds.
SHORTEST_SECONDS = 1.0
RESULTS = Path(__file__).parent / "results"
NEEDS_CUDA = "not run: needs CUDA"


def run_checks(card: Card, checks: Sequence[Check], total_seconds: float = TOTAL_SECONDS) -> Iterator[tuple[str, Row]]:
    """Run the checks one after another and yield their rows as they come, with the check's name."""
    end = time.perf_counter() + total_seconds
    for check in checks:
        seconds = min(check.seconds, end - time.perf_counter())
        if check.needs_cuda and card.device.type != "cuda":
            yield check.name, {"result": NEEDS_CUDA}
        elif seconds < SHORTEST_SECONDS:
            yield check.name, {"result": "not run: no time left"}
        else:
            start = time.perf_counter()
            try:
                for row in check.run(card, Deadline(seconds)):
                    yield check.name, row
            except Exception as error:  # the other checks still say something
                yield check.name, {"result": f"failed: {first_line(error)}"}
            yield check.name, {"seconds": round(time.perf_counter() - start, 1), "of": check.seconds}


def describe(card: Card) -> Row:
    """Return the device, the date and the versions."""
    is_cuda = card.device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(card.device) if is_cuda else str(card.device),
        "date": time.strftime("%Y-%m-%d"),
        "model": card.name,
        "side": card.side,
        "quick": card.quick,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.hip or torch.version.cuda,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the checks, print a line for each row, and write the JSON. Return 1 where a check failed."""
    parser = argparse.ArgumentParser(prog="python -m engine.bench.card_check", description="Check a lent card.")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 or mps (default: auto)")
    parser.add_argument("--model", help="model or architecture (default: sd-turbo; pocket with --quick)")
    parser.add_argument("--quick", action="store_true", help="the small model, and few repetitions")
    parser.add_argument("--only", metavar="CHECKS", help="comma-separated checks (default: all)")
    parser.add_argument(
        "--output", type=Path, default=RESULTS, help="folder of the JSON (default: engine/bench/results)"
    )
    options = parser.parse_args(arguments)
    requested = options.only.split(",") if options.only else [check.name for check in CHECKS]
    if unknown := [name for name in requested if name not in {check.name for check in CHECKS}]:
        parser.error(f"--only takes {', '.join(check.name for check in CHECKS)}, got {unknown[0]!r}")
    import_quietly()
    device = pick_device(options.device)
    use_device(device)
    card = Card(device, options.quick, options.model)
    machine, rows = describe(card), {name: list[Row]() for name in requested}
    print("  ".join(f"{key} {value}" for key, value in machine.items()), flush=True)
    for name, row in run_checks(card, [check for check in CHECKS if check.name in requested]):
        rows[name].append(row)
        print(f"  {name}: " + "  ".join(f"{key} {value}" for key, value in row.items()), flush=True)
    options.output.mkdir(parents=True, exist_ok=True)
    slug = re.sub(r"[^a-z0-9]+", "-", machine["device"].lower()).strip("-")
    path = claim_new(options.output / f"card-{slug}-{machine['date']}.json")
    write_atomically(path, json.dumps({"machine": machine, **rows}, indent=1) + "\n")
    print(f"→ {path}")
    return int(any(str(row.get("result", "")).startswith("failed") for some in rows.values() for row in some))


if __name__ == "__main__":
    raise SystemExit(main())
