"""NDI senders of one name: only one program of a machine can have it, and the other must not crash."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest

from tests.house.sources import ROOT

SCRIPT = """
import sys
import numpy as np
from bridge.textures import TextureError, ndi, open_sink
from engine.shared.frame import Frame

def write(sink, width=64):
    try:
        sink.write(Frame(np.zeros((48, width, 4), np.uint8)))
        return "sent"
    except TextureError as error:
        return str(error)

first, second = (open_sink(f"ndi:{sys.argv[1]}") for _ in range(2))
answers = [write(first), write(second), write(second), write(first, 80), write(second)]
first.close()
answers.append(write(second))
second._retry_at = 0.0  # as after NAME_RETRY_SECONDS
answers += [write(second), write(second, 96)]
second.close()
print(answers)
"""


@pytest.mark.skipif(importlib.util.find_spec("cyndilib") is None, reason="cyndilib is not installed")
def test_a_name_that_is_in_use_is_one_line_and_is_taken_when_it_is_free() -> None:
    name = f"phosphene-test-{os.getpid()}"
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT, name],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    error = f"ndi:{name}: another program on this machine sends as {name}; choose another name"
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == str(["sent", error, error, "sent", error, error, "sent", "sent"])
