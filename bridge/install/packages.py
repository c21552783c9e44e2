"""Phosphene and its packages in a virtual environment: torch for the graphics card first, then the rest.

The builds for graphics cards were tested with stand-ins for pip and the drivers; none was installed yet.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from bridge.install.environment import python_of, say, site_packages
from engine.shared import torch_build
from engine.shared.graphics_card import GraphicsCard, find_card, parse_numbers
from engine.shared.torch_build import TorchBuild, read_torch_build

#: Parts of a checkout that are installed.
TREES = ("bridge", "engine", "presets", "touchdesigner")
#: File in the environment that says what was installed last.
STAMP = "phosphene-installed.txt"
#: Packages of requirements.lock that belong to the CUDA of PyPI's torch.
_CUDA_PACKAGES = re.compile(r"(nvidia|cuda)-")


class Installer:
    """Installs a checkout into an environment. ``system`` is a ``sys.platform``."""

    def __init__(self, checkout: Path, environment: Path, system: str = sys.platform) -> None:
        self.checkout, self.environment, self.system = checkout, environment, system
        self.lock = checkout / "requirements.lock"
        self._python = str(python_of(environment))

    def install(self, extra: str) -> int:
        """Install ``phosphene[extra]`` and the torch for this machine's card; return an exit code.

        Does nothing where nothing has changed since the last time. Without a network, what is installed stays in use.
        """
        card = find_card(self.system)
        line = torch_build.describe_card(card, self.system, self._python)
        if line:
            print(line, flush=True)
        self.install_torch(card)
        if self._is_installed() and self._read_stamp() == self._stamp(extra):
            return 0
        print(f"installing phosphene[{extra}]; the first time takes some minutes …", flush=True)
        target = f"{self.checkout}[{extra}]"
        code = self._pip("install", target, "--constraint", str(self._constraints()))
        if code:
            say("requirements.lock does not suit this Python; installing other versions")
            code = self._pip("install", target)
        if code == 0:
            (self.environment / STAMP).write_text(self._stamp(extra), "utf-8")
        elif self._is_installed() and self._read_stamp().startswith(extra + " "):
            say("the packages could not be updated; continuing with those that are installed")
            code = 0
        return code

    def install_torch(self, card: GraphicsCard | None) -> None:
        """Install or replace torch where the one that is there, or PyPI's, does not use ``card``."""
        build, fitting = self.torch(), torch_build.fitting_builds(card, self.system)
        if card is None or not fitting or (build and self._uses(build, card)):
            return
        if build is None and self.system != "win32" and fitting[0] == torch_build.PYPI_CUDA_ON_LINUX:
            return  # PyPI's torch is this build
        force = ["--force-reinstall"] if build else []
        for cuda in fitting:
            index = torch_build.index_url(cuda)
            print(f"installing PyTorch with CUDA {cuda[0]}.{cuda[1]} from {index} …", flush=True)
            requirement = torch_build.requirement(cuda, self.read_pin("torch"))
            code = self._pip("install", *force, "--no-deps", requirement, "--index-url", index, quiet=False)
            if code == 0 and self._has_cuda(cuda):
                return
        say("PyTorch for the graphics card could not be downloaded, PyPI's is used; the next start tries again")

    def torch(self) -> TorchBuild | None:
        """Return the torch in the environment."""
        packages = site_packages(self.environment)
        return read_torch_build(packages) if packages else None

    def read_pin(self, name: str) -> str:
        """Return the requirement of a package in requirements.lock, or its bare name."""
        lines = self.lock.read_text("utf-8").splitlines()
        return next((line.split(";")[0].strip() for line in lines if line.startswith(name + "==")), name)

    def _has_cuda(self, cuda: tuple[int, int]) -> bool:
        """Return whether that build is in the environment: pip may have taken another from folders in its settings."""
        build = self.torch()
        return build is None or parse_numbers(build.cuda) == cuda

    def _uses(self, build: TorchBuild, card: GraphicsCard) -> bool:
        """Return whether a torch may stay: it runs on the card, or somebody chose a build for another maker's."""
        return bool(build.rocm) or (bool(build.cuda) and torch_build.runs(parse_numbers(build.cuda), card, self.system))

    def _constraints(self) -> Path:
        """Return requirements.lock, without the lines that the installed torch contradicts."""
        build = self.torch()
        if build is None:
            return self.lock
        dropped = []
        if self.system != "win32" and build.cuda and parse_numbers(build.cuda) != torch_build.PYPI_CUDA_ON_LINUX:
            dropped.append(_CUDA_PACKAGES)
        if self._chosen_from_range(build):
            dropped.append(re.compile("torch=="))
        if not dropped:
            return self.lock
        lines = self.lock.read_text("utf-8").splitlines(keepends=True)
        path = self.environment / "phosphene-constraints.txt"
        path.write_text("".join(line for line in lines if not any(r.match(line) for r in dropped)), "utf-8")
        return path

    def _chosen_from_range(self, build: TorchBuild) -> bool:
        """Return whether a torch is of another version because the locked one has no such CUDA build."""
        release = parse_numbers(build.cuda)
        return any(cuda == release and versions for cuda, (_, versions) in torch_build.CUDA_BUILDS.items())

    def _is_installed(self) -> bool:
        packages = site_packages(self.environment)
        return packages is not None and any(packages.glob("phosphene-*.dist-info"))

    def _read_stamp(self) -> str:
        try:
            return (self.environment / STAMP).read_text("utf-8")
        except OSError:
            return ""

    def _stamp(self, extra: str) -> str:
        """Return what tells one installation from another: the extra, and a digest of the files and of torch."""
        digest = hashlib.sha256(repr(self.torch()).encode())
        for path in self._files():
            state = path.stat()
            digest.update(repr((str(path), state.st_size, state.st_mtime_ns)).encode())
        return f"{extra} {digest.hexdigest()}"

    def _files(self) -> Iterator[Path]:
        yield from (self.checkout / "pyproject.toml", self.lock)
        for tree in TREES:
            paths = sorted((self.checkout / tree).rglob("*"))
            yield from (path for path in paths if path.is_file() and "__pycache__" not in path.parts)

    def _pip(self, command: str, *arguments: str, quiet: bool | None = None) -> int:
        """Run pip in the environment and return its code; by default silent where nobody watches its progress."""
        quiet = not sys.stdout.isatty() if quiet is None else quiet
        pip: Sequence[str] = [self._python, "-m", "pip", "--disable-pip-version-check"]
        return subprocess.run([*pip, command, *(["--quiet"] if quiet else []), *arguments]).returncode
