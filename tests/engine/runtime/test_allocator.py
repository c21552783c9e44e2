"""Retained memory: what a frame frees is reused at the next one, and returned to the system on request."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from engine.runtime.allocator import retain_freed_memory

#: Print the page faults of 50 frames, each with several tensors of 1 MiB that are allocated and freed.
COUNT_PAGE_FAULTS = """
import resource, sys, torch
from engine.runtime.allocator import retain_freed_memory
if sys.argv[1] == "retain":
    assert retain_freed_memory()
def frame():
    return [torch.ones(2**18) for _ in range(8)]
for _ in range(5):
    frame()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(50):
    frame()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
#: Free 128 MiB of small tensors, and print how many MiB the system gets back from a trim.
COUNT_TRIMMED_MIB = """
import psutil, torch
from engine.runtime.allocator import retain_freed_memory, trim_heap
assert retain_freed_memory()
tensors = [torch.ones(2**14) for _ in range(2000)]
del tensors
before = psutil.Process().memory_info().rss
trim_heap()
print((before - psutil.Process().memory_info().rss) // 2**20)
"""
#: The worst case of glibc's own policy: each tensor is mapped by itself.
WORST_CASE = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def run_program(program: str, *arguments: str, **variables: str) -> int:
    """Run a program in a new process and return the number it prints."""
    command = [sys.executable, "-c", program, *arguments]
    environment = os.environ | variables
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60, env=environment)
    return int(result.stdout)


@pytest.mark.skipif(not retain_freed_memory(), reason="needs glibc")
def test_the_heap_is_trimmed_after_a_model_is_gone() -> None:
    assert run_program(COUNT_TRIMMED_MIB) > 100, "128 MiB were freed and not returned"


@pytest.mark.skipif(not retain_freed_memory(), reason="needs glibc")
def test_memory_that_a_frame_frees_is_not_mapped_again_at_the_next() -> None:
    retained, default = (run_program(COUNT_PAGE_FAULTS, way, **WORST_CASE) for way in ("retain", "default"))
    assert retained < 500, "8 MiB are 2048 pages a frame"
    assert default > 20 * max(retained, 1), "else retaining would gain nothing"
