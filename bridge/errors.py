"""Errors that the command line reports in one line."""

from __future__ import annotations


class UserError(Exception):
    """A user's mistake: reported in one line, exit code 2."""
