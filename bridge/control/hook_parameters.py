"""The parameters of the user's own effects: read from their files as text, at start and whenever one changes. None is run here."""

from __future__ import annotations

import ast
import threading
from pathlib import Path

from bridge.control.state import State
from engine.shared.parameter import InvalidValue, Parameter
from engine.shared.table import HOOK_NAME, declare

#: How often the folder is looked at, in seconds.
EVERY = 0.5
#: Most parameters of one file.
MOST = 32


def files(folder: Path) -> list[Path]:
    """The hook files of a folder in the order of their names; a leading underscore leaves a file out."""
    return sorted(path for path in folder.glob("*.py") if HOOK_NAME.fullmatch(path.stem))


def declared(path: Path) -> list[Parameter]:
    """The parameters of one hook file: ``/hook/NAME/on``, and one for each entry of its ``PARAMETERS``.

    Raises BadValue, with the line, for a file that is no Python or declares something else.
    """
    name = path.stem
    rows = [Parameter(f"/hook/{name}/on", "bool", True, f"Whether the effect {name} is on")]
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidValue(f"hook {name} cannot be read: {error}") from None
    except SyntaxError as error:
        raise InvalidValue(f"hook {name} is no Python, line {error.lineno}: {error.msg}") from None
    for node in tree.body:
        if not isinstance(node, ast.Assign) or not any(
            isinstance(t, ast.Name) and t.id == "PARAMETERS" for t in node.targets
        ):
            continue
        try:
            table = ast.literal_eval(node.value)
        except ValueError:
            raise InvalidValue(f"hook {name}, line {node.lineno}: PARAMETERS must be plain values") from None
        if not isinstance(table, dict) or len(table) > MOST:
            raise InvalidValue(
                f"hook {name}, line {node.lineno}: PARAMETERS must be a dictionary of at most {MOST} entries"
            )
        rows += [_row(name, node.lineno, key, entry) for key, entry in table.items()]
    return rows


def _row(name: str, line: int, key: object, entry: object) -> Parameter:
    if not isinstance(key, str) or not HOOK_NAME.fullmatch(key) or key == "on":
        raise InvalidValue(f"hook {name}, line {line}: {key!r} is no name for a parameter")
    if not isinstance(entry, tuple) or len(entry) != 4 or not isinstance(entry[3], str):
        raise InvalidValue(f"hook {name}, line {line}: {key} must be (default, least, most, help)")
    numbers = [float(n) for n in entry[:3] if isinstance(n, int | float) and not isinstance(n, bool)]
    if len(numbers) != 3 or not numbers[1] <= numbers[0] <= numbers[2]:
        raise InvalidValue(f"hook {name}, line {line}: {key} must have least ≤ default ≤ most")
    return Parameter(f"/hook/{name}/{key}", "float", numbers[0], entry[3], low=numbers[1], high=numbers[2])


def declare_all(folder: str) -> list[Parameter]:
    """Declares the parameters of every hook in ``folder``. Raises BadValue where that is no folder, or a file in it is wrong."""
    if not Path(folder).is_dir():
        raise InvalidValue(f"--hooks {folder}: no such folder")
    rows = [row for path in files(Path(folder)) for row in declared(path)]
    declare(rows)
    return rows


class HookWatch:
    """Looks at the folder while a show runs; a file that is wrong keeps what it declared before."""

    def __init__(self, folder: str, state: State) -> None:
        self._folder, self._state = Path(folder), state
        self._rows: dict[str, tuple[int, list[Parameter]]] = {}
        self._stop = threading.Event()
        self.look()
        threading.Thread(target=self._watch, name="hooks", daemon=True).start()

    def look(self) -> None:
        """Declares what is new or changed, and forgets what is gone."""
        before, self._rows = self._rows, {}
        for path in files(self._folder):
            try:
                stamp = path.stat().st_mtime_ns
                if before.get(path.stem, (0, []))[0] == stamp:
                    self._rows[path.stem] = before[path.stem]
                else:
                    self._rows[path.stem] = (stamp, declared(path))
            except (OSError, InvalidValue):  # the engine tells what is wrong with a file
                self._rows[path.stem] = (0, before.get(path.stem, (0, []))[1])
        if self._rows != before:
            self._state.declare([row for _, rows in self._rows.values() for row in rows])

    def close(self) -> None:
        """Ends the watch."""
        self._stop.set()

    def _watch(self) -> None:
        while not self._stop.wait(EVERY):
            self.look()
