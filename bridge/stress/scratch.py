"""Where the abuse test works: a scratch folder, commands that write there alone, and a stand-in for the model hub."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from bridge.errors import UserError
from bridge.stress.senders import LOCALHOST

#: Longest wait for a command to end, or for a show to do anything, in seconds.
TIMEOUT_SECONDS = 60.0
#: Niceness of what runs beside the show.
NICENESS = 10


class HubTrap:
    """Stands in for the model hub and counts the requests that reach it. A context manager."""

    def __init__(self) -> None:
        self.requests: list[str] = []
        trap = self

        class Handler(BaseHTTPRequestHandler):
            def _answer(self) -> None:
                trap.requests.append(self.path)
                self.send_error(404)

            do_GET = do_HEAD = do_POST = _answer  # noqa: N815 -- the library's names

            def log_message(self, format: str, *args: object) -> None:
                """Print nothing."""

        self._server = ThreadingHTTPServer((LOCALHOST, 0), Handler)
        self.url = f"http://{LOCALHOST}:{self._server.server_address[1]}"

    def __enter__(self) -> HubTrap:
        threading.Thread(target=self._server.serve_forever, name="hub trap", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class Scratch:
    """A folder that holds every file of a test, and the environment in which commands write there alone."""

    def __init__(self, folder: Path, hub: str = "") -> None:
        self.folder = folder
        self.presets = folder / "presets"
        self.elsewhere, temporary = folder / "elsewhere", folder / "tmp"
        for created in (self.presets / "cues", self.presets / "desks", self.elsewhere, temporary):
            created.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(OSError):  # where captures were once written, another user has put a link
            (temporary / "phosphene").symlink_to(self.elsewhere)
        homes = {name: str(folder / name.lower()) for name in ("XDG_CONFIG_HOME", "XDG_STATE_HOME", "XDG_CACHE_HOME")}
        self.environment: Mapping[str, str] = {
            **os.environ,
            **homes,
            "TMPDIR": str(temporary),
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path) or os.getcwd(),
            "HF_HOME": str(folder / "hub"),
            **({"HF_ENDPOINT": hub} if hub else {}),
        }

    def command(self, *arguments: str, timeout: float = TIMEOUT_SECONDS, **environment: str) -> tuple[int, str]:
        """Run ``phosphene`` with ``arguments``; return its exit code and all that it printed."""
        return self.run([sys.executable, "-m", "bridge", *arguments], timeout, environment)

    def run(
        self, command: Sequence[str], timeout: float = TIMEOUT_SECONDS, environment: Mapping[str, str] | None = None
    ) -> tuple[int, str]:
        """Run a program beside the show, at a low priority; return its exit code and all that it printed.

        Raises OSError where there is no such program, and UserError where it takes longer than ``timeout`` seconds.
        """
        process = subprocess.Popen(
            command,
            env={**self.environment, **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        if hasattr(os, "setpriority"):  # at a show, another machine would do this
            os.setpriority(os.PRIO_PROCESS, process.pid, NICENESS)
        try:
            output = process.communicate(timeout=timeout)[0]
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise UserError(f"{' '.join(command)} does not end within {timeout:.0f} s") from None
        return process.returncode, output.decode(errors="replace")
