"""The built-in models: their weights and cards, and the pattern classifier that judges them."""
