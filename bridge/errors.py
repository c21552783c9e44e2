"""What the command line reports in one line."""

from __future__ import annotations


class UserError(Exception):
    """What the user did wrong: told in one line, exit code 2."""
