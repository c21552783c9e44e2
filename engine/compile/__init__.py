"""Compilation of a model's components while the stream runs: trace, build in a separate process, verify, swap in."""

from engine.compile.accelerator import Accelerator
from engine.compile.cuda_graphs import open_graph_runtime

__all__ = ["Accelerator", "open_graph_runtime"]
