"""The pocket model: the embedded default, its data and its training."""
