"""Detection of graphics cards: stand-ins for nvidia-smi, the CUDA driver, the registry and Linux' files."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from engine.shared import graphics_card
from engine.shared.graphics_card import NO_DRIVER, GraphicsCard, find_card
from tests.programs import needs_shell, nvidia_smi, write_program

pytestmark = needs_shell
RTX = GraphicsCard("NVIDIA", "NVIDIA GeForce RTX 4070", "581.29", (8, 9))


@pytest.fixture(autouse=True)
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make an empty folder the PATH, and another one Windows."""
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("SYSTEMROOT", str(tmp_path / "Windows"))
    monkeypatch.setenv("PROGRAMFILES", str(tmp_path / "Program Files"))
    return tmp_path / "bin"


class Registry:
    """The functions of ``winreg`` that read, on two adapters and a key that is closed to users."""

    HKEY_LOCAL_MACHINE = 0

    def __init__(self, *adapters: tuple[str, str]) -> None:
        self._adapters = [dict(zip(("DriverDesc", "DriverVersion"), adapter, strict=True)) for adapter in adapters]

    def OpenKey(self, key: Any, name: str) -> Any:  # noqa: N802 -- winreg's name
        if name == "Properties":
            raise PermissionError(5, "Access is denied")
        return Key(self._adapters[int(name)] if key else self._adapters)

    def QueryInfoKey(self, key: Any) -> tuple[int, int, int]:  # noqa: N802
        return len(key.value) + 1, 0, 0

    def EnumKey(self, key: Any, i: int) -> str:  # noqa: N802
        return f"{i:04}" if i < len(key.value) else "Properties"

    def QueryValueEx(self, key: Any, name: str) -> tuple[str, int]:  # noqa: N802
        return key.value[name], 1


class Key:
    """An open key."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __enter__(self) -> Key:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def set_registry(monkeypatch: pytest.MonkeyPatch, *adapters: tuple[str, str]) -> None:
    monkeypatch.setitem(sys.modules, "winreg", Registry(*adapters))


def set_driver(monkeypatch: pytest.MonkeyPatch, cuda: int) -> None:
    """Let nvcuda.dll load, with a driver for a CUDA release such as 12040."""

    def version(pointer: Any) -> int:
        pointer._obj.value = cuda
        return 0

    def load(name: str) -> Any:
        if name != "nvcuda.dll":
            raise OSError(name)
        return SimpleNamespace(cuDriverGetVersion=version)

    monkeypatch.setattr(ctypes, "CDLL", load)


@pytest.mark.parametrize("system", ["win32", "linux"])
def test_nvidia_smi_on_the_path_names_card_driver_and_capability(path: Path, system: str) -> None:
    write_program(path / "nvidia-smi", nvidia_smi("NVIDIA GeForce RTX 4070, 581.29, 8.9"))
    assert find_card(system) == RTX
    assert str(RTX) == "NVIDIA GeForce RTX 4070 (driver 581.29)"


def test_nvidia_smi_in_system32_is_asked_too(tmp_path: Path) -> None:
    write_program(tmp_path / "Windows/System32/nvidia-smi.exe", nvidia_smi("NVIDIA GeForce RTX 4070, 581.29, 8.9"))
    assert find_card("win32") == RTX


def test_the_newest_of_two_cards_counts(path: Path) -> None:
    write_program(
        path / "nvidia-smi", nvidia_smi("NVIDIA GeForce GTX 1080, 581.29, 6.1", "NVIDIA GeForce RTX 4070, 581.29, 8.9")
    )
    assert find_card("linux") == RTX


def test_an_old_driver_without_compute_cap_still_says_its_version(path: Path) -> None:
    write_program(path / "nvidia-smi", nvidia_smi("GeForce GTX 780, 470.82.01, 3.5", old=True))
    assert find_card("linux") == GraphicsCard("NVIDIA", "GeForce GTX 780", "470.82.01", (0, 0))


@pytest.mark.parametrize(
    "script",
    [
        'echo "NVIDIA-SMI has failed because it couldn\'t communicate with the NVIDIA driver."; exit 9',
        'echo "Failed to initialize NVML: Driver/library version mismatch"; exit 18',
        'echo "No devices were found"; exit 6',
        "exec 2>&1; exit 127",
        "echo 'a, b, c'",
    ],
)
def test_a_nvidia_smi_that_fails_names_no_card(path: Path, tmp_path: Path, script: str) -> None:
    write_program(path / "nvidia-smi", script)
    assert find_card("linux", tmp_path) is None


def test_a_nvidia_smi_that_hangs_is_given_up(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphics_card, "NVIDIA_SMI_SECONDS", 0.2)
    write_program(path / "nvidia-smi", "while :; do :; done")
    assert find_card("linux", tmp_path) is None


def test_windows_without_nvidia_smi_reads_the_driver_and_the_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    set_driver(monkeypatch, 12060)
    set_registry(monkeypatch, ("AMD Radeon(TM) Graphics", "31.0.1.2"), ("NVIDIA GeForce RTX 3080", "32.0.15.6094"))
    assert find_card("win32") == GraphicsCard("NVIDIA", "NVIDIA GeForce RTX 3080", "560.94")


@pytest.mark.parametrize(("cuda", "driver"), [(13000, "580"), (12040, "528"), (11080, ""), (14000, "580")])
def test_windows_with_the_driver_alone_knows_its_cuda_release(
    monkeypatch: pytest.MonkeyPatch, cuda: int, driver: str
) -> None:
    set_driver(monkeypatch, cuda)
    set_registry(monkeypatch)
    assert find_card("win32") == GraphicsCard("NVIDIA", "NVIDIA card", driver)


def test_windows_with_amd_and_without_a_card(monkeypatch: pytest.MonkeyPatch) -> None:
    set_registry(monkeypatch, ("AMD Radeon RX 7900 XTX", "32.0.12033.1030"))
    assert find_card("win32") == GraphicsCard("AMD", "AMD Radeon RX 7900 XTX")
    set_registry(monkeypatch, ("Intel(R) UHD Graphics 770", "31.0.101.4502"))
    assert find_card("win32") is None
    monkeypatch.setitem(sys.modules, "winreg", None)
    assert find_card("win32") is None


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def test_linux_without_nvidia_smi_reads_the_loaded_driver(tmp_path: Path) -> None:
    version = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  550.54.14  Release Build  (build@host)\n"
    write(tmp_path / "proc/driver/nvidia/version", version)
    write(tmp_path / "proc/driver/nvidia/gpus/0000:01:00.0/information", "Model: \t\t NVIDIA RTX A4000\nIRQ: 136\n")
    assert find_card("linux", tmp_path) == GraphicsCard("NVIDIA", "NVIDIA RTX A4000", "550.54.14")


@pytest.mark.parametrize(
    ("vendor", "kfd", "card"),
    [
        ("0x10de", False, GraphicsCard("NVIDIA", "NVIDIA card", NO_DRIVER)),
        ("0x1002", True, GraphicsCard("AMD", "AMD card")),
        ("0x1002", False, None),
        ("0x8086", False, None),
    ],
)
def test_linux_cards_without_nvidias_driver(tmp_path: Path, vendor: str, kfd: bool, card: GraphicsCard | None) -> None:
    write(tmp_path / "sys/class/drm/card0/device/vendor", f"{vendor}\n")
    if kfd:
        write(tmp_path / "dev/kfd", "")
    assert find_card("linux", tmp_path) == card


def test_macos_asks_nothing(path: Path) -> None:
    write_program(path / "nvidia-smi", nvidia_smi("NVIDIA GeForce GT 750M, 378.05, 3.0"))
    assert find_card("darwin") is None
