"""Looks as TOML files; ``bridge.cues`` reads them."""
