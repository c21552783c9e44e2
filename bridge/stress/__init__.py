"""A show of its own, tried hard: broken, flooded, and run for a night."""
