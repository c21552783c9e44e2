"""Training: the shared loop and the recipes that use it."""
