"""Parameters of the user's effects: parsed from their files at start and after every change. No file is run here."""

from __future__ import annotations

import ast
import logging
import math
import threading
from pathlib import Path

from bridge.control.state import State
from bridge.file_reader import SCAN_SECONDS, FileReader
from bridge.rate_limit import RateLimit
from engine.shared.errors import first_line
from engine.shared.files import FolderScan, FolderWatcher
from engine.shared.parameter import InvalidValue, Parameter
from engine.shared.table import HOOK_NAME, declare
from engine.shared.text import is_valid_unicode
from engine.shared.user_files import MAX_HOOK_BYTES, MAX_HOOK_FILES, list_folder, read_bytes

log = logging.getLogger(__name__)
POLL_SECONDS = 0.5
MAX_PARAMETERS_PER_FILE = 32


def list_hook_files(folder: Path) -> list[Path]:
    """Return the hook files of a folder, sorted by name. A leading underscore excludes a file."""
    return [path for path in list_folder(folder, ".py", MAX_HOOK_FILES) if HOOK_NAME.fullmatch(path.stem)]


def parse_parameters(path: Path) -> list[Parameter]:
    """Return the parameters of one hook file: ``/hook/NAME/on``, and one for each entry of its ``PARAMETERS``.

    Raises InvalidValue, with the line, if the file is not valid Python or declares something else.
    """
    name = path.stem
    rows = [Parameter(f"/hook/{name}/on", "bool", True, f"Enable the effect {name}")]
    try:
        tree = ast.parse(read_bytes(path, MAX_HOOK_BYTES).decode("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InvalidValue(f"hook {name} is not readable: {reason}") from None
    except SyntaxError as error:
        raise InvalidValue(f"hook {name} is not valid Python, line {error.lineno}: {error.msg}") from None
    except (ValueError, RecursionError, MemoryError) as error:  # null bytes, or nested too deeply
        raise InvalidValue(f"hook {name} is not valid Python: {first_line(error)}") from None
    for node in tree.body:
        if not isinstance(node, ast.Assign) or not any(
            isinstance(target, ast.Name) and target.id == "PARAMETERS" for target in node.targets
        ):
            continue
        place = f"hook {name}, line {node.lineno}"
        try:
            table = ast.literal_eval(node.value)
        except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
            raise InvalidValue(f"{place}: PARAMETERS must be plain values") from None
        if not isinstance(table, dict) or len(table) > MAX_PARAMETERS_PER_FILE:
            limit = f"at most {MAX_PARAMETERS_PER_FILE} entries"
            raise InvalidValue(f"{place}: PARAMETERS must be a dictionary of {limit}")
        rows += [_parse_entry(name, place, key, entry) for key, entry in table.items()]
    return rows


def _parse_entry(hook: str, place: str, key: object, entry: object) -> Parameter:
    if not isinstance(key, str) or not HOOK_NAME.fullmatch(key) or key == "on":
        raise InvalidValue(f"{place}: {key!r} is not a valid parameter name")
    if not isinstance(entry, tuple) or len(entry) != 4 or not isinstance(entry[3], str):
        raise InvalidValue(f"{place}: {key} must be (default, min, max, help)")
    if not is_valid_unicode(entry[3]):
        raise InvalidValue(f"{place}: the help of {key} is not valid Unicode")
    try:
        numbers = [float(n) for n in entry[:3] if isinstance(n, int | float) and not isinstance(n, bool)]
    except OverflowError:
        numbers = []
    if len(numbers) != 3 or not -math.inf < numbers[1] <= numbers[0] <= numbers[2] < math.inf:
        raise InvalidValue(f"{place}: {key} must satisfy min ≤ default ≤ max")
    return Parameter(f"/hook/{hook}/{key}", "float", numbers[0], entry[3], low=numbers[1], high=numbers[2])


def declare_all(folder: str) -> list[Parameter]:
    """Declare the parameters of every hook in ``folder``. Raises InvalidValue if a file or the folder is invalid."""

    def read() -> list[Parameter]:
        if not Path(folder).is_dir():
            raise InvalidValue(f"--hooks {folder}: no such folder")
        return [row for path in list_hook_files(Path(folder)) for row in parse_parameters(path)]

    rows = FileReader().call(f"--hooks {folder}", read)
    declare(rows)
    return rows


class HookWatch:
    """Declares the parameters of the folder's hooks anew when a file comes, goes or changes.

    An invalid file keeps the parameters that it declared before. ``reader`` reads the files.
    """

    def __init__(self, folder: str, state: State, reader: FileReader | None = None) -> None:
        self._state, self._reader, self._place = state, reader or FileReader(), f"hooks in {folder}"
        self._watcher = FolderWatcher(lambda: list_hook_files(Path(folder)), self._load, SCAN_SECONDS)
        self._stop = threading.Event()
        self.poll()
        threading.Thread(target=self._run, name="hooks", daemon=True).start()

    def poll(self) -> None:
        """Let the reader read the folder once."""
        self._reader.submit(self._place, self._watcher.scan, self._accept, key=self._place)

    def _accept(self, scan: FolderScan[list[Parameter]] | None) -> None:
        if self._watcher.accept(scan):
            self._state.declare([row for rows in self._watcher.entries.values() for row in rows])

    def close(self) -> None:
        """Stop watching."""
        self._stop.set()

    @staticmethod
    def _load(path: Path, previous: list[Parameter] | None) -> list[Parameter]:
        try:
            return parse_parameters(path)
        except InvalidValue:  # the engine reports what is wrong with the file
            return previous or []

    def _run(self) -> None:
        limit = RateLimit()
        while not self._stop.wait(POLL_SECONDS):
            try:
                self.poll()
            except Exception:  # the next poll may work
                if limit.passes()[0]:
                    log.exception("the folder of hooks could not be read")
