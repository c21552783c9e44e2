"""Fuzzing of every parser of external data: ``python -m tests.fuzz``; the corpus is tested with the other tests."""
