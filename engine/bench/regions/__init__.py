"""Benchmarks of region-adaptive sampling: against fewer steps and repeated frames, always at equal time."""
