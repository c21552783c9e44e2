"""``phosphene report``: a zip for a bug report with versions, checks, settings and the last logs; no secrets."""

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
from bridge.commands import doctor
from bridge.commands.options import add_option
from bridge.commands.output_check import check_files, report_failed_writes
from bridge.errors import UserError
from bridge.file_reader import expand_user
from bridge.performance import session
from engine.shared.files import create_atomically
from engine.shared.user_files import open_regular

HELP = "collect versions, settings and the last logs in a zip for a bug report"
#: Bytes that are copied from the end of each log.
MAX_LOG_BYTES = 1 << 20
_SECRETS = (
    (re.compile(r"(token=)[^\s&\"']+", re.IGNORECASE), r"\1…"),
    (re.compile(r"(bearer\s+)[\w.~+/=-]+", re.IGNORECASE), r"\1…"),
    (re.compile(r"\bhf_[A-Za-z0-9]{8,}"), "hf_…"),
    (re.compile(r"(://[^/\s:@]+:)[^@/\s]+@"), r"\1…@"),
)


def redact(text: str) -> str:
    """Return ``text`` without tokens, passwords and the name of the user's home folder."""
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    return text.replace(str(Path.home()), "~")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    add_option(parser, "file", nargs="?", metavar="FILE", help="zip file", default_text="phosphene-report-DATE.zip")
    add_option(parser, "--log", metavar="FILE", action="append", help="log in another place; repeatable")


def main(options: argparse.Namespace) -> int:
    """Write the zip and print its contents. Raises UserError."""
    path = expand_user(options.file or f"phosphene-report-{time.strftime('%Y%m%d-%H%M%S')}.zip")
    check_files([path], {}, hint="choose another name")
    parts = {"about.json": json.dumps(describe_machine(), indent=1), "doctor.txt": _capture_doctor()}
    for name, file in _default_files().items():
        parts[name] = _read_tail(file)
    for name in options.log or ():
        file = Path(name).expanduser()
        if not file.is_file():
            raise UserError(f"--log {name}: no such file")
        parts[f"log/{file.name}"] = _read_tail(file)
    with (
        report_failed_writes(path),
        create_atomically(path) as temporary,
        zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive,
    ):
        for name, text in parts.items():
            archive.writestr(name, redact(text))
    print(f"{path}: {', '.join(parts)}")
    print("It contains prompts and file names, and no tokens.")
    return 0


def describe_machine() -> dict[str, object]:
    """Return the versions of everything installed, and the machine."""
    memory = psutil.virtual_memory()
    return {
        "phosphene": release() or "from a checkout",
        "python": platform.python_version(),
        "system": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "memory_gib": round(memory.total / 2**30, 1),
        "packages": {
            package.metadata["Name"]: package.version
            for package in sorted(distributions(), key=lambda d: str(d.metadata["Name"]).lower())
        },
    }


def _default_files() -> dict[str, Path]:
    """Return the session files and logs in the system's folders, by their name in the zip."""
    session_file = session.default_path(1)
    folders = [("log", logs.default_path(1).parent, "*.jsonl*")]
    if session_file is not None:
        folders.insert(0, ("session", session_file.parent, "*-[0-9]*.json"))
    return {
        f"{name}/{file.name}": file
        for name, folder, pattern in folders
        if folder.is_dir()
        for file in sorted(folder.glob(pattern))
    }


def _capture_doctor() -> str:
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        doctor.main()
    return text.getvalue()


def _read_tail(path: Path) -> str:
    """Return the last MAX_LOG_BYTES of a file, from a line's start on."""
    try:
        with open_regular(path) as file:
            file.seek(max(0, path.stat().st_size - MAX_LOG_BYTES))
            data = file.read()
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    lines = data if len(data) < MAX_LOG_BYTES else data.partition(b"\n")[2]
    return lines.decode("utf-8", "replace")
