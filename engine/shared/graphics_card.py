"""The graphics card as its driver reports it: maker, name, driver version and compute capability.

Uses the standard library alone and no torch: ``bridge.bootstrap`` needs it before anything is installed. Written from
the documentation of nvidia-smi, of the CUDA driver API, of Linux and of Windows; never run with a card.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NVIDIA, AMD = "NVIDIA", "AMD"
#: Longest that nvidia-smi may take. A card that has slept needs some seconds.
NVIDIA_SMI_SECONDS = 20.0
#: Registry key of the display adapters on Windows; each adapter is a subkey of four digits.
ADAPTERS_KEY = r"SYSTEM\CurrentControlSet\Control\Class\{4d36e968-e325-11ce-bfc1-08002be10318}"
#: PCI vendor numbers, as Linux writes them.
PCI_VENDORS = {NVIDIA: "0x10de", AMD: "0x1002"}
#: ``GraphicsCard.driver`` of a card without its maker's driver.
NO_DRIVER = "none"


@dataclass(frozen=True)
class GraphicsCard:
    """A card and the version of its driver: "" where that is unknown, NO_DRIVER where there is none.

    ``capability`` is NVIDIA's compute capability: (12, 0) for the RTX 50 series, (0, 0) where unknown.
    """

    maker: str
    name: str
    driver: str = ""
    capability: tuple[int, int] = (0, 0)

    def __str__(self) -> str:
        return self.name if self.driver in ("", NO_DRIVER) else f"{self.name} (driver {self.driver})"


def find_card(system: str = "", root: Path = Path("/")) -> GraphicsCard | None:
    """Return the card that PyTorch could use on ``system``, a ``sys.platform``; None where there is none, and on macOS.

    An NVIDIA card comes before one of AMD, and the newest before older ones. ``root`` is the root of Linux' files.
    """
    system = system or sys.platform
    if system == "win32":
        return _ask_nvidia_smi(system) or _ask_windows_driver() or _find_windows_amd()
    if system.startswith("linux"):
        return _ask_nvidia_smi(system) or _read_linux_driver(root) or _find_linux_card(root)
    return None


def parse_numbers(text: str) -> tuple[int, ...]:
    """Return the numbers of a version: (551, 23) of ``551.23``; () where the text begins with no number."""
    match = re.match(r"\d+(?:\.\d+)*", text.strip())
    return tuple(int(part) for part in match[0].split(".")) if match else ()


def parse_nvidia_smi(text: str) -> list[GraphicsCard]:
    """Return the cards in the answer to ``--query-gpu=name,driver_version,compute_cap``, the newest first."""
    cards = []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.rsplit(",", 2)]
        if len(cells) < 3 or not parse_numbers(cells[1]):
            continue  # an error message
        capability = (*parse_numbers(cells[2]), 0, 0)
        cards.append(GraphicsCard(NVIDIA, cells[0], cells[1], (capability[0], capability[1])))
    return sorted(cards, key=lambda card: card.capability, reverse=True)


def _nvidia_smi_paths(system: str) -> Iterator[str]:
    """Yield where nvidia-smi may be. The driver's installer does not always put it on the PATH."""
    yield shutil.which("nvidia-smi") or ""
    if system == "win32":
        yield str(Path(os.environ.get("SYSTEMROOT", r"C:\Windows"), "System32", "nvidia-smi.exe"))
        programs = os.environ.get("PROGRAMFILES", r"C:\Program Files")
        yield str(Path(programs, "NVIDIA Corporation", "NVSMI", "nvidia-smi.exe"))
    else:
        yield "/usr/lib/wsl/lib/nvidia-smi"


def _ask_nvidia_smi(system: str) -> GraphicsCard | None:
    """Return the newest card that nvidia-smi lists. Drivers before 510 know no ``compute_cap``: ask without it."""
    program = next((path for path in _nvidia_smi_paths(system) if path and os.path.isfile(path)), None)
    if program is None:
        return None
    for fields, rest in (("name,driver_version,compute_cap", ""), ("name,driver_version", ",")):
        try:
            answer = subprocess.run(
                [program, "--query-gpu=" + fields, "--format=csv,noheader"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                timeout=NVIDIA_SMI_SECONDS,
            )
        except (OSError, subprocess.SubprocessError):
            return None
        lines = answer.stdout.decode("utf-8", "replace").splitlines()
        cards = parse_nvidia_smi("\n".join(line + rest for line in lines))
        if cards and not answer.returncode:
            return cards[0]
    return None


def _ask_windows_driver() -> GraphicsCard | None:
    """Return the card of a CUDA driver that loads. Its name and version are in the registry.

    Without them, ``cuDriverGetVersion``'s CUDA release stands for the oldest driver that has it.
    """
    try:
        version = ctypes.c_int()
        ctypes.CDLL("nvcuda.dll").cuDriverGetVersion(ctypes.byref(version))
    except (OSError, AttributeError):
        return None
    for name, text in _windows_adapters():
        digits = re.sub(r"\D", "", text)[-5:]  # 32.0.15.6094 is NVIDIA's 560.94
        if NVIDIA in name.upper() and len(digits) == 5:
            return GraphicsCard(NVIDIA, name, f"{digits[:3]}.{digits[3:]}")
    cuda = version.value // 1000
    return GraphicsCard(NVIDIA, "NVIDIA card", "580" if cuda >= 13 else "528" if cuda == 12 else "")


def _find_windows_amd() -> GraphicsCard | None:
    names = [name for name, _ in _windows_adapters() if AMD in name.upper() or "RADEON" in name.upper()]
    return GraphicsCard(AMD, names[0]) if names else None


def _windows_adapters() -> list[tuple[str, str]]:
    """Return the display adapters of the registry: (description, driver version)."""
    try:
        import winreg

        registry: Any = winreg  # mypy knows its functions on Windows alone
        adapters = []
        with registry.OpenKey(registry.HKEY_LOCAL_MACHINE, ADAPTERS_KEY) as key:
            for i in range(registry.QueryInfoKey(key)[0]):
                try:
                    with registry.OpenKey(key, registry.EnumKey(key, i)) as adapter:
                        values = [registry.QueryValueEx(adapter, name)[0] for name in ("DriverDesc", "DriverVersion")]
                        adapters.append((str(values[0]), str(values[1])))
                except OSError:  # "Properties" is closed to users
                    continue
        return adapters
    except (ImportError, OSError):
        return []


def _read_linux_driver(root: Path) -> GraphicsCard | None:
    """Return the card of a loaded NVIDIA driver, from its files below ``/proc/driver/nvidia``."""
    folder = root / "proc/driver/nvidia"
    try:
        version = re.search(r"Module.*?\s(\d{3}(?:\.\d+)+)\s", (folder / "version").read_text("utf-8", "replace"))
        cards = sorted((folder / "gpus").glob("*/information"))
        names = re.findall(r"Model:\s*(\S.*)", "\n".join(card.read_text("utf-8", "replace") for card in cards))
    except OSError:
        return None
    return GraphicsCard(NVIDIA, names[0].strip(), version[1] if version else "") if names else None


def _find_linux_card(root: Path) -> GraphicsCard | None:
    """Return an NVIDIA card without NVIDIA's driver, or an AMD card with its compute interface ``/dev/kfd``."""
    vendors = set()
    for path in sorted((root / "sys/class/drm").glob("card*/device/vendor")):
        try:
            vendors.add(path.read_text("utf-8").strip())
        except OSError:
            continue
    if PCI_VENDORS[NVIDIA] in vendors:
        return GraphicsCard(NVIDIA, "NVIDIA card", NO_DRIVER)
    if PCI_VENDORS[AMD] in vendors and (root / "dev/kfd").exists():
        return GraphicsCard(AMD, "AMD card")
    return None
