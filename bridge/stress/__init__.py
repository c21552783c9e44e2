"""Stress tests of a throwaway show: fault injection, load tests and soak tests."""
