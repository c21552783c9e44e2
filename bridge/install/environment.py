"""The virtual environment: made once, kept while its Python works, made again where it does not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from bridge.install import interpreters

#: Longest path below ``site-packages``: a licence inside torch 2.13.
LONGEST_PACKAGE_PATH = 171
#: Longest path that Windows takes without long paths enabled.
WINDOWS_PATH = 259


def say(text: str) -> None:
    """Print a line on a problem or a choice."""
    print(f"phosphene: {text}", file=sys.stderr, flush=True)


def python_of(folder: Path) -> Path:
    """Return the Python of an environment."""
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def site_packages(folder: Path) -> Path | None:
    """Return the folder of an environment's packages; None where there is none."""
    paths = [folder / "Lib" / "site-packages", *sorted(folder.glob("lib/python*/site-packages"))]
    return next((path for path in paths if path.is_dir()), None)


def read_config(folder: Path) -> dict[str, str]:
    """Return the values of ``pyvenv.cfg``; empty without one."""
    try:
        lines = (folder / "pyvenv.cfg").read_text("utf-8", "replace").splitlines()
    except OSError:
        return {}
    pairs = [line.partition("=") for line in lines]
    return {name.strip().lower(): value.strip() for name, _, value in pairs}


def read_version(folder: Path) -> tuple[int, ...]:
    """Return the version of an environment's Python; () where its file does not say."""
    config = read_config(folder)
    parts = (config.get("version") or config.get("version_info") or "").split(".")
    return tuple(int(part) for part in parts[:3] if part.isdigit())


def problem(folder: Path) -> str:
    """Return why an environment does not work any more; "" where it works, or is not there yet."""
    config, version = read_config(folder), read_version(folder)
    if not config:
        return ""
    if version and interpreters.version_problem(version):
        name = ".".join(map(str, version))
        return f"it was made with Python {name}: {interpreters.version_problem(version)}"
    if not python_of(folder).exists() or ("home" in config and not Path(config["home"]).is_dir()):
        return f"the Python that it was made with is gone ({config.get('home', 'unknown')})"
    return ""


def prepare(folder: Path, replace: bool) -> int:
    """Make the environment in ``folder`` if it does not work yet, and return an exit code.

    One that works no more is replaced where ``replace`` allows it; else it is named.
    """
    reason = problem(folder)
    if reason and not replace:
        say(f"{folder} cannot be used: {reason}; delete it, or name another folder with --venv")
        return 2
    if not reason and python_of(folder).exists():
        _note_missing_spout(folder)
        return _ensure_pip(folder)
    running = interpreters.read_facts()
    python, line = interpreters.choose(running)
    if line:
        say(line)
    if python is None:
        return 2
    if reason:
        say(f"{folder} is made again: {reason}")
    if long_path_warning(folder, running.system):
        say(long_path_warning(folder, running.system))
    print(f"creating {folder} …", flush=True)
    code = subprocess.run([python.path, "-m", "venv", *(["--clear"] if reason else []), str(folder)]).returncode
    if code:
        say(f"{folder} could not be made; see the lines above")
    return code


def long_path_warning(folder: Path, system: str) -> str:
    """Return a line where the packages' paths may be too long for Windows; else ""."""
    if system != "win32" or _long_paths_enabled():
        return ""
    room = WINDOWS_PATH - LONGEST_PACKAGE_PATH - len(r"\Lib\site-packages" + "\\")
    if len(str(folder)) <= room:
        return ""
    return f"{folder} has {len(str(folder))} characters: if pip names a path that is too long, move to C:\\phosphene"


def _long_paths_enabled() -> bool:
    try:
        import winreg

        registry = vars(winreg)  # mypy knows its functions on Windows alone
        with registry["OpenKey"](registry["HKEY_LOCAL_MACHINE"], r"SYSTEM\CurrentControlSet\Control\FileSystem") as key:
            return bool(registry["QueryValueEx"](key, "LongPathsEnabled")[0])
    except (ImportError, OSError):
        return False


def _note_missing_spout(folder: Path) -> None:
    version = read_version(folder)
    if sys.platform == "win32" and version and version[:2] >= interpreters.FIRST_WITHOUT_SPOUT:
        say(f"{folder} was made with Python {version[0]}.{version[1]}, which Spout has no package for")


def _ensure_pip(folder: Path) -> int:
    """Install pip into an environment that was made without one, or only half; return an exit code."""
    packages = site_packages(folder)
    if packages is None or (packages / "pip").is_dir() or not read_config(folder):
        return 0
    return subprocess.run([str(python_of(folder)), "-m", "ensurepip"]).returncode
