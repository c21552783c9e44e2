"""Compilation of a model's components while the stream runs: trace, build in a separate process, verify, swap in."""

from engine.compile.accelerator import Accelerator

__all__ = ["Accelerator"]
