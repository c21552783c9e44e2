"""The command line: finds the commands, and turns a user's mistake into one line.

A command is a module in ``bridge/commands`` with ``HELP``, ``add_arguments(parser)`` and ``main(options)``. Only the
module of the command that is called is imported.
"""

from __future__ import annotations

import argparse
import ast
import errno
import importlib
import logging
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from bridge import console, release
from bridge.errors import UserError
from bridge.logs import ConsoleHandler
from engine.shared.parameter import InvalidValue
from engine.shared.timer import request_fine_timers

PACKAGE = "bridge.commands"
#: What a full or broken disk answers to a write.
OUTPUT_ERRORS = (errno.ENOSPC, errno.EIO)


class CommandEntry(NamedTuple):
    """A command as its source declares it: its help, and its former names with what each stands for."""

    help: str
    old_names: Mapping[str, str]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0 for success, 1 for a failed check, 2 for a user's mistake."""
    console.configure()
    request_fine_timers()
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[ConsoleHandler()])
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    code = 1
    try:
        code = _run(build_parser(arguments[:1]).parse_args(arguments))
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, such as head, has enough: discard the rest
        console.discard_output()
    except OSError as error:
        if error.errno not in OUTPUT_ERRORS or error.filename is not None:
            raise
        console.discard_output()
        code = 1
        print(f"phosphene: cannot write: {error.strerror}", file=sys.stderr)
    return code


def _run(options: argparse.Namespace) -> int:
    from bridge.textures.base import TextureError

    try:
        return int(options.main(options))
    except (UserError, InvalidValue, TextureError) as error:
        print(f"phosphene: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


@cache
def find_commands() -> Mapping[str, CommandEntry]:
    """Return the commands by name: the modules that declare ``HELP``, read as text and not imported."""
    commands = {}
    folders = importlib.import_module(PACKAGE).__path__
    for path in sorted(path for folder in folders for path in Path(folder).glob("*.py")):
        constants = _constants(path.read_text(encoding="utf-8"))
        if "HELP" in constants:
            commands[path.stem] = CommandEntry(constants["HELP"], constants.get("OLD_NAMES", {}))
    return commands


def _constants(source: str) -> dict[str, Any]:
    """Return HELP and OLD_NAMES of a module's source."""
    return {
        node.targets[0].id: ast.literal_eval(node.value)
        for node in ast.parse(source).body
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and node.targets[0].id in ("HELP", "OLD_NAMES")
    }


def build_parser(called: Sequence[str] | None = None) -> argparse.ArgumentParser:
    """Return the parser of every command; with the options of the ``called`` ones alone, or of all where it is None."""
    parser = argparse.ArgumentParser(prog="phosphene", description="Live video in, live diffusion out.")
    parser.add_argument("--version", action="version", version=f"phosphene {release() or 'from a checkout'}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    entries = find_commands()
    for name, entry in entries.items():
        description = entry.help[:1].upper() + entry.help[1:]
        command = commands.add_parser(name, help=entry.help, description=description)
        if called is None or name in called:
            module = importlib.import_module(f"{PACKAGE}.{name}")
            command.set_defaults(main=module.main)
            module.add_arguments(command)
    for name, entry in entries.items():
        for old_name, meaning in entry.old_names.items():
            command = commands.add_parser(old_name, help=f"old name of `{name} {meaning}`")
            if called is None or old_name in called:
                module = importlib.import_module(f"{PACKAGE}.{name}")
                command.set_defaults(main=module.main)
                module.add_old_name(command, meaning)
    return parser


if __name__ == "__main__":
    sys.exit(main())
