"""The recipe of the embedded pocket model: drawn data, three training stages, compression and evaluation."""
