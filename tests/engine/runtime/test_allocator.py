"""Memory that was freed stays with the process that takes it again at every frame."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from engine.runtime.allocator import retain_freed_memory

#: Several tensors of 1 MiB made and freed, over and over, and the pages that were mapped for it.
FRAMES = """
import resource, sys, torch
from engine.runtime.allocator import keep_freed
if sys.argv[1] == "keep":
    assert keep_freed()
def frame():
    return [torch.ones(2**18) for _ in range(8)]
for _ in range(5):
    frame()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(50):
    frame()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
#: 128 MiB in small tensors, made and freed, and how many of them the system gets back when it is to.
GIVEN = """
import psutil, torch
from engine.runtime.allocator import give_back, keep_freed
assert keep_freed()
tensors = [torch.ones(2**14) for _ in range(2000)]
del tensors
held = psutil.Process().memory_info().rss
give_back()
print((held - psutil.Process().memory_info().rss) // 2**20)
"""


#: What luck may come to at its worst: each tensor is mapped by itself.
UNLUCKY = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def printed(program: str, *arguments: str, **variables: str) -> int:
    command = [sys.executable, "-c", program, *arguments]
    return int(
        subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=60, env=os.environ | variables
        ).stdout
    )


def pages(way: str) -> int:
    return printed(FRAMES, way, **UNLUCKY)


@pytest.mark.skipif(not retain_freed_memory(), reason="for glibc")
def test_what_a_model_leaves_behind_is_given_back() -> None:
    assert printed(GIVEN) > 100, "128 MiB were freed and kept"


@pytest.mark.skipif(not retain_freed_memory(), reason="for glibc")
def test_what_a_frame_frees_is_not_mapped_again_at_the_next() -> None:
    kept, left = pages("keep"), pages("leave")
    assert kept < 500, "8 MiB are 2048 pages a frame"
    assert left > 20 * max(kept, 1), "or it were of no use"
