"""``phosphene report``: what a bug report needs in one zip: versions, what works here, what was set, the last log. No secrets."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import platform
import re
import time
import zipfile
from importlib.metadata import distributions
from pathlib import Path

import psutil

from bridge import logs, release
from bridge.commands.doctor import doctor
from bridge.errors import UserError
from bridge.performance import session as journal

#: Bytes of the end of each log.
TAIL = 1 << 20
_SECRETS = (
    (re.compile(r"(token=)[^\s&\"']+", re.IGNORECASE), r"\1…"),
    (re.compile(r"(bearer\s+)[\w.~+/=-]+", re.IGNORECASE), r"\1…"),
    (re.compile(r"\bhf_[A-Za-z0-9]{8,}"), "hf_…"),
    (re.compile(r"(://[^/\s:@]+:)[^@/\s]+@"), r"\1…@"),
)


def scrubbed(text: str) -> str:
    """``text`` without tokens, passwords and the name of the user's folder."""
    for pattern, instead in _SECRETS:
        text = pattern.sub(instead, text)
    return text.replace(str(Path.home()), "~")


def report(options: argparse.Namespace) -> int:
    """Writes the zip and says what is in it. Raises UserError."""
    path = Path(options.file or f"phosphene-report-{time.strftime('%Y%m%d-%H%M%S')}.zip").expanduser()
    parts = {"about.json": json.dumps(about(), indent=1), "doctor.txt": _doctor()}
    usual = journal.default_path(1)
    folders = {"journal": usual.parent if usual else None, "log": logs.default_path(1).parent}
    for kind, folder in folders.items():
        for file in (
            sorted(folder.glob("journal-*.json" if kind == "journal" else "*.jsonl*"))
            if folder and folder.is_dir()
            else ()
        ):
            parts[f"{kind}/{file.name}"] = _end(file)
    for name in options.log or ():
        file = Path(name).expanduser()
        if not file.is_file():
            raise UserError(f"--log {name}: there is no such file")
        parts[f"log/{file.name}"] = _end(file)
    try:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as made:
            for name, text in parts.items():
                made.writestr(name, scrubbed(text))
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror})") from None
    print(f"{path}: {', '.join(parts)}")
    print("It holds prompts and names of files as they were set, and no tokens.")
    return 0


def about() -> dict[str, object]:
    """Versions and the machine."""
    memory = psutil.virtual_memory()
    return {
        "phosphene": release() or "from a checkout",
        "python": platform.python_version(),
        "system": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "memory_gib": round(memory.total / 2**30, 1),
        "packages": {
            found.metadata["Name"]: found.version
            for found in sorted(distributions(), key=lambda d: str(d.metadata["Name"]).lower())
        },
    }


def _doctor() -> str:
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        doctor()
    return text.getvalue()


def _end(path: Path) -> str:
    """The last TAIL bytes of a file, from a whole line on."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, path.stat().st_size - TAIL))
            data = file.read()
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    whole = data if len(data) < TAIL else data.partition(b"\n")[2]
    return whole.decode("utf-8", "replace")
