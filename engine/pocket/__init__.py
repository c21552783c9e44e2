"""The pocket model, the embedded default: weights, pattern classifier and model card."""
