"""Looks as TOML."""
