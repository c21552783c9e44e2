"""The session file of ``phosphene run``: where it is, whether it may be there, and its lock."""

from __future__ import annotations

import argparse
from pathlib import Path

from bridge.errors import UserError
from bridge.file_reader import expand_user
from bridge.performance.session import default_path
from bridge.performance.session_file import SessionLock, check_session_file


def find_session_path(options: argparse.Namespace) -> Path | None:
    """Return the path of the session file; None for none. Raises UserError for a path that cannot be one."""
    if options.session == "none":
        return None
    path = expand_user(options.session) if options.session else default_path(options.osc_port)
    if path is not None:
        try:
            check_session_file(path, any_content=not options.session)
        except OSError as error:
            raise UserError(f"--session {path}: {error.strerror}") from None
    return path


def lock_session(path: Path) -> SessionLock:
    """Return the lock of the session file. Raises UserError if another show has it."""
    lock = SessionLock(path)
    if not lock.acquire():
        raise UserError(f"--session {path}: another show saves its session there; choose another file")
    return lock
