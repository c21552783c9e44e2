"""A stand-in for a virtual environment: its Python records how pip is called, and does to torch what pip would.

What else it starts is written to the file ``started``, and ends with code 5.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tests.programs import write_program

#: What ``python -m pip …`` does in the environment. The folder is the first argument.
PIP = r"""
import json, pathlib, re, sys

folder, arguments = pathlib.Path(sys.argv[1]), sys.argv[2:]
text = " ".join(arguments)
with open(folder / "calls.jsonl", "a") as log:
    log.write(json.dumps(arguments) + "\n")
failing = folder / "failing"
if failing.exists() and any(word in text for word in failing.read_text().split()):
    sys.exit(1)
packages = folder / "lib" / "python3.11" / "site-packages"
torch = packages / "torch" / "version.py"
index = re.search(r"whl/cu(\d\d)(\d)", text)
links = folder / "links"
if index and links.exists():
    torch.parent.mkdir(exist_ok=True)
    torch.write_text(links.read_text())
elif index:
    torch.parent.mkdir(exist_ok=True)
    torch.write_text("__version__ = '2.13.0+cu%s%s'\ncuda = '%s.%s'\nhip = None\n" % (*index.groups(), *index.groups()))
elif "install" in arguments:
    (packages / "phosphene-0.2.0.dist-info").mkdir(exist_ok=True)
    if not torch.exists():
        torch.parent.mkdir()
        torch.write_text((folder / "pypi").read_text())
"""
CPU = "__version__ = '2.13.0+cpu'\ncuda: Optional[str] = None\nhip: Optional[str] = None\n"
CUDA_130 = "__version__ = '2.13.0+cu130'\ncuda: Optional[str] = '13.0'\nhip: Optional[str] = None\n"
ROCM = "__version__ = '2.13.0+rocm7.2'\ncuda: Optional[str] = None\nhip: Optional[str] = '7.2.1'\n"


class StandIn:
    """An environment in ``folder`` for ``system``, whose PyPI has the torch that the real one has."""

    def __init__(self, folder: Path, system: str, torch: str = "") -> None:
        self.folder = folder
        self.packages = folder / "lib" / "python3.11" / "site-packages"
        (self.packages / "pip").mkdir(parents=True)
        (folder / "pip.py").write_text(PIP, encoding="utf-8")
        (folder / "pypi").write_text(CUDA_130 if system == "linux" else CPU, encoding="utf-8")
        script = f'if [ "$2" = pip ]; then exec "{sys.executable}" -SI "{folder}/pip.py" "{folder}" "$@"; fi'
        start = f'printf "%s|" "$PWD" "$@" > "{folder}/started"; exit 5'
        write_program(folder / "bin" / "python", f"{script}\n{start}")
        if torch:
            (self.packages / "torch").mkdir()
            (self.packages / "torch" / "version.py").write_text(torch, encoding="utf-8")

    def fail(self, *words: str) -> None:
        """Let pip fail where its arguments hold one of ``words``."""
        (self.folder / "failing").write_text(" ".join(words), encoding="utf-8")

    def prefer(self, torch: str) -> None:
        """Let pip install a torch from a folder in its settings, whatever index it is given."""
        (self.folder / "links").write_text(torch, encoding="utf-8")

    def take_calls(self) -> list[list[str]]:
        """Return pip's arguments since the last call."""
        log = self.folder / "calls.jsonl"
        if not log.exists():
            return []
        calls = [json.loads(line)[2:] for line in log.read_text(encoding="utf-8").splitlines()]
        log.unlink()
        return calls
