"""The builder process, from the engine's side: started, asked for a build, ended."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from typing import Any

import torch

from engine.compile.requirements import toolkit_environment

#: Seconds until a build is cancelled.
BUILD_TIMEOUT_SECONDS = 1800.0


class BuilderDied(RuntimeError):
    """The builder process ended in the middle of a build."""

    def __init__(self) -> None:
        super().__init__("the builder process died")


def start_builder(device: torch.device) -> subprocess.Popen[bytes]:
    """Start a builder process for ``device``. Raises OSError."""
    return subprocess.Popen(
        [sys.executable, "-m", "engine.compile.builder"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=os.environ | toolkit_environment(device),
    )


def request_build(builder: subprocess.Popen[bytes], request: dict[str, Any]) -> None:
    """Send a request to the builder process and wait for its answer. Raises BuilderDied, or RuntimeError with it."""
    assert builder.stdin is not None
    assert builder.stdout is not None
    timer = threading.Timer(BUILD_TIMEOUT_SECONDS, builder.kill)
    timer.start()
    try:
        builder.stdin.write(json.dumps(request).encode() + b"\n")
        builder.stdin.flush()
        answer = builder.stdout.readline().decode(errors="replace")
    finally:
        timer.cancel()
    if not answer.endswith("\n"):
        raise BuilderDied
    if answer.strip():
        raise RuntimeError(answer.strip())


def stop_builder(builder: subprocess.Popen[bytes]) -> None:
    """End the builder process."""
    builder.kill()
    builder.wait()
    for pipe in (builder.stdin, builder.stdout):
        if pipe is not None:
            pipe.close()
