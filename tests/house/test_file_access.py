"""File access: each call of the bridge that touches the disk has a row with its thread and what bounds it.

A disk or network folder may answer after minutes or never. So no thread that a show depends on may touch one: not OSC,
HTTP, automation, the output or the main loop. What users name is read on a thread of the reader, under a time limit.
"""

from __future__ import annotations

import ast
import re

from tests.house.sources import module_name, parse, python_files

#: Functions and methods that touch the disk, by their last name.
DISK_CALLS = re.compile(
    "access|check_regular|check_replaceable|chmod|claim_new|create_new|disk_usage|exists|fdopen|fromfile|glob|imdecode|"
    "imread|imwrite|is_dir|is_file|is_mount|islink|isdir|isfile|iterdir|lexists|list_folder|listdir|lstat|makedirs|"
    "mkdir|open|open_regular|open_video|read_bytes|read_image|read_text|readlink|rename|replace|replace_atomically|"
    "resolve|rglob|samefile|scandir|stat|symlink_to|touch|unlink|utime|walk|write_atomically|write_bytes|write_text"
)
#: Threads that may touch the disk. "start" and "end" are the main thread before and after a show, "command" that of a
#: command without a show. "file job" is a thread of the reader, "engine" another process.
THREADS = {"start", "end", "command", "file job", "session", "source", "sink", "import prefetch", "capture", "engine"}
#: Parts of the package that are no part of a show.
OUTSIDE = ("bridge.guides", "bridge.stress", "bridge.commands.", "bridge.bootstrap", "bridge.fresh", "bridge.install")
#: A command without a show runs these in the modules above.
COMMANDS_OF_A_SHOW = ("bridge.commands.run", "bridge.commands.options", "bridge.commands.control_inputs")

SYSTEM = "a file of the package or of the system, not named by a user"
LIMIT = "the reader's time limit"
REGULAR = "regular files only, bounded in bytes; " + LIMIT
CAPTURES = "this program's folder of captures"
LISTED = "bounded in entries; " + LIMIT
#: (module, function, call) → (threads, bound).
ACCESSES: dict[tuple[str, str, str], tuple[str, str]] = {
    ("bridge.cli", "find_commands", "Path(folder).glob"): ("start", SYSTEM),
    ("bridge.cli", "find_commands", "path.read_text"): ("start", SYSTEM),
    ("bridge.commands.options", "preset_folders", "folder.is_dir"): ("file job", LIMIT),
    ("bridge.console", "_open_closed_descriptors", "os.open"): ("start", SYSTEM),
    ("bridge.console", "configure", "open"): ("start", SYSTEM),
    ("bridge.console", "discard_output", "os.open"): ("end", SYSTEM),
    ("bridge.control.hook_parameters", "declare_all.read", "Path(folder).is_dir"): ("file job", LIMIT),
    ("bridge.control.hook_parameters", "list_hook_files", "list_folder"): ("file job", LISTED),
    ("bridge.control.hook_parameters", "parse_parameters", "read_bytes"): ("file job", REGULAR),
    ("bridge.control.mapping", "ControllerMap._save.write", "check_replaceable"): ("file job", LIMIT),
    ("bridge.control.mapping", "ControllerMap._save.write", "folder.mkdir"): ("file job", LIMIT),
    ("bridge.control.mapping", "ControllerMap._save.write", "path.exists"): ("file job", LIMIT),
    ("bridge.control.mapping", "ControllerMap._save.write", "write_atomically"): ("file job", LIMIT),
    ("bridge.control.mapping", "_load_learned", "path.exists"): ("file job", LIMIT),
    ("bridge.engine_process.import_prefetch", "_prefetch", "list_path().read_text"): ("import prefetch", SYSTEM),
    ("bridge.engine_process.import_prefetch", "_prefetch", "open"): ("import prefetch", SYSTEM),
    ("bridge.engine_process.import_prefetch", "record", "path.parent.mkdir"): ("engine", SYSTEM),
    ("bridge.engine_process.import_prefetch", "record", "write_atomically"): ("engine", SYSTEM),
    ("bridge.engine_process.import_prefetch", "start", "list_path().exists"): ("start", SYSTEM),
    ("bridge.engine_process.tcmalloc", "find_library", "(path := Path(folder, LIBRARY)).exists"): ("start", SYSTEM),
    ("bridge.logs", "JsonLogHandler.__init__", "path.parent.mkdir"): ("start", "one folder"),
    ("bridge.logs", "_check_log", "open_regular"): ("start", "the first bytes of a regular file"),
    ("bridge.network.access", "confine_files", "folder.resolve"): ("file job", LIMIT),
    ("bridge.network.access", "confine_files", "os.scandir"): ("file job", LIMIT),
    ("bridge.network.access", "confine_files.check", "path.resolve"): ("file job", "0.2 s, then open folders refuse"),
    ("bridge.panel.server", "PanelServer.__init__", "files('bridge.panel').joinpath(name).read_bytes"): (
        "start",
        SYSTEM,
    ),
    ("bridge.performance.cue_list", "CueLibrary._list_files", "path.stat"): ("file job", LISTED),
    (
        "bridge.performance.presets",
        "PresetLibrary.thumbnail",
        "files('presets').joinpath('thumbnails', f'{name}.jpg').read_bytes",
    ): ("file job", SYSTEM),
    ("bridge.performance.presets", "PresetLibrary.thumbnail", "read_bytes"): ("file job", REGULAR),
    ("bridge.performance.presets", "_write", "check_replaceable"): ("file job", LIMIT),
    ("bridge.performance.presets", "_write", "os.path.lexists"): ("file job", LIMIT),
    ("bridge.performance.presets", "_write", "path.parent.mkdir"): ("file job", LIMIT),
    ("bridge.performance.presets", "_write", "write_atomically"): ("file job", LIMIT),
    ("bridge.performance.session", "Session._write", "check_replaceable"): ("session", "one file"),
    ("bridge.performance.session", "Session._write", "open"): ("session", "one temporary file"),
    ("bridge.performance.session", "Session._write", "os.replace"): ("session", "one rename"),
    ("bridge.performance.session", "Session._write", "replace_atomically"): ("session", "one rename"),
    ("bridge.performance.session", "Session._write", "self.path.exists"): ("session", "one file"),
    ("bridge.performance.session", "Session._write", "self.path.parent.mkdir"): ("session", "one folder"),
    ("bridge.performance.session", "_delete_unfinished_saves", "temporary.unlink"): ("start", "one folder"),
    ("bridge.performance.session", "_read", "read_bytes"): ("start", "regular files of MAX_SESSION_BYTES"),
    ("bridge.performance.session_file", "SessionLock.acquire", "os.open"): ("start", "one file, without a wait"),
    ("bridge.performance.session_file", "SessionLock.acquire", "self._path.parent.mkdir"): ("start", "one folder"),
    ("bridge.performance.session_file", "_looks_like_session", "open_regular"): ("start", "HEADER_BYTES"),
    ("bridge.performance.session_file", "check_session_file", "candidate.exists"): ("start", "two files"),
    ("bridge.performance.session_file", "check_session_file", "check_replaceable"): ("start", "two files"),
    ("bridge.performance.session_file", "check_session_file", "path.parent.exists"): ("start", "one folder"),
    ("bridge.performance.session_file", "check_session_file", "path.parent.is_dir"): ("start", "one folder"),
    ("bridge.show.captures", "Captures._delete_old", "entry.stat"): ("capture", CAPTURES),
    ("bridge.show.captures", "Captures._delete_old", "os.scandir"): ("capture", CAPTURES),
    ("bridge.show.captures", "Captures._delete_old", "path.unlink"): ("capture", CAPTURES),
    ("bridge.show.captures", "Captures._named_captures", "read_bytes"): (
        "capture",
        "regular files of MAX_SESSION_BYTES",
    ),
    ("bridge.show.captures", "Captures._named_captures", "session.parent.glob"): ("capture", "the folder of sessions"),
    ("bridge.show.captures", "Captures._save", "create_new"): ("capture", CAPTURES),
    ("bridge.show.captures", "Captures._save", "open"): ("capture", CAPTURES),
    ("bridge.show.captures", "Captures._save", "path.unlink"): ("capture", CAPTURES),
    ("bridge.show.captures", "open_private_folder", "folder.chmod"): ("capture", CAPTURES),
    ("bridge.show.captures", "open_private_folder", "folder.mkdir"): ("capture", CAPTURES),
    ("bridge.show.captures", "open_private_folder", "os.lstat"): ("capture", CAPTURES),
    ("bridge.show.fallback", "read_still", "read_image"): ("file job", "bounded in pixels; " + REGULAR),
    ("bridge.textures.file", "FileSink._finish", "create_new"): ("sink", "the file that is recorded"),
    ("bridge.textures.file", "FileSink._finish", "os.replace"): ("sink", "the file that is recorded"),
    ("bridge.textures.file", "FileSink._finish", "path.unlink"): ("sink", "the file that is recorded"),
    ("bridge.textures.file", "FileSink._open", "shutil.disk_usage"): ("sink", "one file system"),
    ("bridge.textures.file", "FileSink.reserve", "claim_new"): ("sink", "names that are taken"),
    ("bridge.textures.file", "FileSource._open", "open_video"): ("file job", "bounded in pixels; " + REGULAR),
    ("bridge.textures.file", "VideoWriter.__init__", "av.open"): ("sink", "the file that is recorded"),
    ("bridge.textures.file", "_identify", "os.lstat"): ("sink", "one file"),
    ("bridge.textures.file", "_is_any", "other.exists"): ("start", "the inputs"),
    ("bridge.textures.file", "_is_any", "path.exists"): ("start", "the inputs"),
    ("bridge.textures.file", "_is_any", "path.samefile"): ("start", "the inputs"),
    ("bridge.textures.file", "check_recording", "path.parent.is_dir"): ("start", "one folder"),
    ("bridge.toml_files", "list_toml_files", "list_folder"): ("file job", LISTED),
    ("bridge.toml_files", "read_toml", "path.read_bytes"): ("start", SYSTEM),
    ("bridge.toml_files", "read_toml", "read_bytes"): ("file job", REGULAR),
    ("bridge.toml_files", "shipped_toml_files", "files('presets').joinpath(*folder).iterdir"): ("start", SYSTEM),
    ("bridge.video_files", "open_video", "av.open"): (
        "file job",
        "known formats, bounded in pixels; " + REGULAR,
    ),
    ("bridge.video_files", "open_video", "check_regular"): ("file job", LIMIT),
}


def touches_the_disk(function: ast.expr) -> bool:
    """Return whether a call of ``function`` may touch the disk, as far as its name says."""
    if isinstance(function, ast.Name):
        return bool(DISK_CALLS.fullmatch(function.id)) and function.id != "replace"  # dataclasses.replace
    if not isinstance(function, ast.Attribute) or not DISK_CALLS.fullmatch(function.attr):
        return False
    owner = ast.unparse(function.value)
    if function.attr == "open":  # ``open`` of a transport or a server is another thing
        return owner in ("os", "av", "io") or "path" in owner.lower()
    if function.attr in ("replace", "rename"):  # of texts
        return owner == "os" or "path" in owner.lower()
    return True


def accesses_of(module: str, tree: ast.Module) -> set[tuple[str, str, str]]:
    """Return module, function and call of each access to the disk."""
    rows = set()

    def visit(node: ast.AST, function: str) -> None:
        for child in ast.iter_child_nodes(node):
            inside = function
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                inside = f"{function}.{child.name}".lstrip(".")
            touching = child.func if isinstance(child, ast.Call) else None
            if touching is not None and touches_the_disk(touching):
                rows.add((module, function, ast.unparse(touching)))
            if isinstance(child, ast.Attribute) and not isinstance(node, ast.Call) and is_passed_on(child):
                rows.add((module, function, ast.unparse(child)))
            visit(child, inside)
        if isinstance(node, ast.Call):  # methods that are passed on, to be called elsewhere
            for argument in node.args:
                if isinstance(argument, ast.Attribute) and is_passed_on(argument):
                    rows.add((module, function, ast.unparse(argument)))

    visit(tree, "")
    return rows


def is_passed_on(method: ast.Attribute) -> bool:
    """Return whether a method that is not called here is one of a path."""
    return method.attr in ("read_bytes", "read_text", "is_dir", "is_file", "exists", "stat", "resolve")


def find_accesses() -> set[tuple[str, str, str]]:
    """Return all accesses of the parts of the bridge that run in a show."""
    names = {module_name(path): path for path in python_files("bridge")}
    inside = [name for name in names if not name.startswith(OUTSIDE) or name.startswith(COMMANDS_OF_A_SHOW)]
    return {row for name in inside for row in accesses_of(name, parse(names[name]))}


def test_every_access_to_the_disk_has_a_row_with_its_thread_and_bound() -> None:
    accesses = find_accesses()
    assert not accesses - set(ACCESSES), "a new access: read it through bridge/file_reader.py and add its row"
    assert not set(ACCESSES) - accesses, "rows without an access"


def test_no_row_is_of_a_thread_that_a_show_depends_on() -> None:
    assert not [row for row, (thread, _) in ACCESSES.items() if thread not in THREADS]
    assert all(bound for _, bound in ACCESSES.values())


def test_an_access_is_found_however_it_is_written() -> None:
    code = """
def f(path):
    open(path); path.open(); os.open(path, 0); np.fromfile(path); cv2.imread(name); av.open(str(path))
    Path(name).read_bytes(); reader.call("x", path.is_dir); [p for p in folder.iterdir()]
    text.replace("a", "b"); replace(frame, pixels=1); server.open(); os.replace(a, b)
"""
    calls = {call for _, _, call in accesses_of("m", ast.parse(code))}
    assert calls == {
        "open", "path.open", "os.open", "np.fromfile", "cv2.imread", "av.open", "Path(name).read_bytes",
        "path.is_dir", "folder.iterdir", "os.replace",
    }  # fmt: skip
