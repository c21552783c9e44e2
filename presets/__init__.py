"""Shipped presets, cue lists and desk maps as TOML files; ``bridge.performance`` and ``bridge.control`` read them."""
