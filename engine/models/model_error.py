"""ModelError, and the one place that turns whatever a library raises over users' files into a line for them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import PurePath

from engine.runtime.device_errors import is_device_lost, is_out_of_memory
from engine.shared.errors import first_line
from engine.shared.parameter import InvalidValue
from engine.shared.text import to_line


class ModelError(InvalidValue):
    """A checkpoint that cannot be loaded; the text names it and the remedy."""


@contextmanager
def reading(what: str, remedy: str = "", verb: str = "read") -> Iterator[None]:
    """Raise InvalidValue in place of anything that is raised but a lost device: the files of ``what`` are at fault.

    Libraries raise whatever their code runs into over a damaged file, so no list of classes would be complete.
    """
    try:
        yield
    except (InvalidValue, KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as error:  # also the panics of libraries written in Rust, which are no Exception
        if is_device_lost(error):
            raise
        raise ModelError(f"{what} cannot be {verb}: {describe_error(error)}{remedy}") from error


def describe_error(error: BaseException) -> str:
    """Return one line on an error of a library."""
    if is_out_of_memory(error):
        return "out of memory"
    if isinstance(error, RecursionError):
        return "its files are nested too deeply"
    if isinstance(error, KeyError):
        return f"missing entry {first_line(error, 100)}"
    if isinstance(error, OSError) and error.strerror and error.filename:
        return to_line(f"{PurePath(str(error.filename)).name[:100]}: {error.strerror}")
    return first_line(error)
