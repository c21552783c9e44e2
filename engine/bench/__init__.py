"""Benchmarks: ``phosphene bench`` makes the paper's comparisons on this machine, with any model."""
