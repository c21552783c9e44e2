"""The recipe of the embedded pocket model: drawn data, three stages, evaluation."""
