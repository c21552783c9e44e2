"""Looks as TOML files; ``bridge.performance.cue_player`` reads them."""
