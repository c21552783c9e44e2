"""Transformers that compute some of their tokens and take the rest from a cache, one file for each architecture."""
