"""Torch for the graphics card, then the rest: stand-ins for pip and nvidia-smi on every kind of machine."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from bridge.install.packages import Installer
from tests.bridge.install.stand_ins import CPU, CUDA_130, ROCM, StandIn
from tests.house.sources import ROOT
from tests.programs import needs_shell, nvidia_smi, write_program

pytestmark = needs_shell
RTX_4070, RTX_5080 = "NVIDIA GeForce RTX 4070, {}, 8.9", "NVIDIA GeForce RTX 5080, {}, 12.0"
GTX_1080, GTX_780 = "NVIDIA GeForce GTX 1080, {}, 6.1", "NVIDIA GeForce GTX 780, {}, 3.5"


@pytest.fixture(autouse=True)
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make an empty folder the PATH, so that this machine's card does not count."""
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("SYSTEMROOT", str(tmp_path / "Windows"))
    return tmp_path / "bin"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Return a checkout with the real lock, and little else."""
    folder = tmp_path / "a checkout"
    for tree in ("bridge", "engine", "presets", "touchdesigner"):
        (folder / tree).mkdir(parents=True)
        (folder / tree / "module.py").write_text("", encoding="utf-8")
    for name in ("pyproject.toml", "requirements.lock"):
        shutil.copy(ROOT / name, folder / name)
    return folder


def torch_calls(calls: list[list[str]]) -> list[list[str]]:
    """Return the words of the calls that install torch alone, without the options of every call."""
    return [call[1:] for call in calls if "--index-url" in call]


@pytest.mark.parametrize(
    ("system", "card", "driver", "before", "expected"),
    [
        ("win32", RTX_4070, "581.29", "", "cu130"),
        ("win32", RTX_4070, "551.23", "", "cu126"),
        ("win32", RTX_5080, "581.29", "", "cu130"),
        ("win32", RTX_5080, "572.16", "", "cu128"),
        ("win32", GTX_1080, "581.29", "", "cu126"),
        ("win32", RTX_4070, "511.65", "", ""),
        ("win32", GTX_780, "474.30", "", ""),
        ("linux", RTX_4070, "580.65.06", "", ""),  # PyPI's has CUDA 13.0
        ("linux", RTX_4070, "550.54.14", "", "cu126"),
        ("linux", RTX_5080, "570.86.16", "", "cu129"),
        ("linux", GTX_1080, "580.65.06", "", "cu126"),
        ("linux", RTX_4070, "470.82", "", ""),
        ("win32", RTX_4070, "581.29", CPU, "cu130, repaired"),
        ("linux", RTX_4070, "580.65.06", CPU, "cu130, repaired"),
        ("linux", RTX_4070, "550.54.14", CUDA_130, "cu126, repaired"),
        ("linux", GTX_1080, "580.65.06", CUDA_130, "cu126, repaired"),
        ("win32", RTX_4070, "581.29", CUDA_130, ""),
        ("win32", RTX_4070, "581.29", CUDA_130.replace("13.0", "12.6"), ""),
        ("win32", RTX_4070, "581.29", CUDA_130.replace("13.0", "13.2"), ""),
        ("linux", RTX_4070, "580.65.06", ROCM, ""),
        ("darwin", RTX_4070, "378.05", "", ""),
    ],
)
def test_torch_for_the_card_is_installed_first(
    path: Path, checkout: Path, tmp_path: Path, system: str, card: str, driver: str, before: str, expected: str
) -> None:
    write_program(path / "nvidia-smi", nvidia_smi(card.format(driver)))
    environment = StandIn(tmp_path / "venv", system, before)
    assert Installer(checkout, environment.folder, system).install("ndi") == 0
    *first, last = environment.take_calls()
    assert f"{checkout}[ndi]" in last
    if not expected:
        assert first == []
        return
    index, _, repaired = expected.partition(", ")
    requirement = "torch>=2.8,<2.12" if index == "cu128" else "torch==2.13.0"
    force = ["--force-reinstall"] if repaired else []
    words = [*force, "--no-deps", requirement, "--index-url", f"https://download.pytorch.org/whl/{index}"]
    assert torch_calls(first) == [["install", *words]]


@pytest.mark.parametrize(
    ("system", "card", "driver", "dropped"),
    [
        ("win32", RTX_4070, "581.29", r"$^"),
        ("win32", RTX_4070, "551.23", r"$^"),
        ("win32", RTX_5080, "572.16", r"torch=="),
        ("linux", RTX_4070, "580.65", r"$^"),
        ("linux", RTX_4070, "550.54", r"(nvidia|cuda)-"),
        ("linux", RTX_5080, "570.86", r"(nvidia|cuda)-"),
    ],
)
def test_the_rest_is_locked_but_for_what_that_torch_contradicts(
    path: Path, checkout: Path, tmp_path: Path, system: str, card: str, driver: str, dropped: str
) -> None:
    write_program(path / "nvidia-smi", nvidia_smi(card.format(driver)))
    environment = StandIn(tmp_path / "venv", system)
    assert Installer(checkout, environment.folder, system).install("ndi") == 0
    call = environment.take_calls()[-1]
    used = Path(call[call.index("--constraint") + 1]).read_text(encoding="utf-8").splitlines()
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    assert used == [line for line in lock if not re.match(dropped, line)]
    assert (len(used) < len(lock)) == (dropped != r"$^")


@pytest.mark.parametrize(
    ("system", "script", "line"),
    [
        ("win32", "", "no NVIDIA or AMD graphics card was detected: Phosphene runs on the processor"),
        ("linux", "", "no NVIDIA or AMD graphics card was detected: Phosphene runs on the processor"),
        ("win32", RTX_4070.format("581.29"), "NVIDIA GeForce RTX 4070 (driver 581.29): PyTorch with CUDA 13.0"),
        (
            "win32",
            RTX_4070.format("511.65"),
            "NVIDIA GeForce RTX 4070 (driver 511.65) is not used: PyTorch needs driver",
        ),
        (
            "linux",
            GTX_780.format("470.82"),
            "NVIDIA GeForce GTX 780 (driver 470.82) is not used: PyTorch needs a GeForce",
        ),
    ],
)
def test_one_line_says_what_was_detected(
    path: Path, checkout: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], system: str, script: str, line: str
) -> None:
    if script:
        write_program(path / "nvidia-smi", nvidia_smi(script))
    environment = StandIn(tmp_path / "venv", system)
    assert Installer(checkout, environment.folder, system).install("ndi") == 0
    assert capfd.readouterr().out.splitlines()[0].startswith(line)


def test_macs_have_one_build_and_no_line(checkout: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    environment = StandIn(tmp_path / "venv", "darwin")
    assert Installer(checkout, environment.folder, "darwin").install("ndi") == 0
    assert capfd.readouterr().out.startswith("installing phosphene[ndi]")


def test_a_download_that_fails_falls_back_and_is_tried_again(
    path: Path, checkout: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write_program(path / "nvidia-smi", nvidia_smi(RTX_4070.format("581.29")))
    environment = StandIn(tmp_path / "venv", "win32")
    environment.fail("--index-url")
    installer = Installer(checkout, environment.folder, "win32")
    assert installer.install("ndi") == 0
    calls = environment.take_calls()
    assert [call[-1].rpartition("/")[2] for call in torch_calls(calls)] == ["cu130", "cu126"]
    assert f"{checkout}[ndi]" in calls[-1]
    assert capfd.readouterr().err == (
        "phosphene: PyTorch for the graphics card could not be downloaded, PyPI's is used; the next start tries again\n"
    )
    environment.fail("cu130")
    assert installer.install("ndi") == 0
    assert ["--force-reinstall" in call for call in torch_calls(environment.take_calls())] == [True, True]
    assert installer.torch() is not None
    assert installer.torch().cuda == "12.6"  # type: ignore[union-attr]


def test_another_build_from_pips_own_settings_is_no_success(
    path: Path, checkout: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write_program(path / "nvidia-smi", nvidia_smi(RTX_4070.format("581.29")))
    environment = StandIn(tmp_path / "venv", "win32")
    environment.prefer(CPU)
    assert Installer(checkout, environment.folder, "win32").install("ndi") == 0
    assert len(torch_calls(environment.take_calls())) == 2
    assert "could not be downloaded" in capfd.readouterr().err


def test_nothing_is_installed_twice_until_something_changes(path: Path, checkout: Path, tmp_path: Path) -> None:
    environment = StandIn(tmp_path / "venv", "win32")
    installer = Installer(checkout, environment.folder, "win32")
    for _ in range(2):
        assert installer.install("ndi") == 0
    assert len(environment.take_calls()) == 1
    (checkout / "bridge" / "module.py").write_text("changed = True", encoding="utf-8")
    assert installer.install("ndi") == 0
    assert len(environment.take_calls()) == 1
    assert installer.install("test") == 0
    assert len(environment.take_calls()) == 1
    write_program(path / "nvidia-smi", nvidia_smi(RTX_4070.format("581.29")))  # a card, built in since
    assert installer.install("test") == 0
    assert len(environment.take_calls()) == 2


def test_without_a_network_the_last_installation_is_used(
    checkout: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    environment = StandIn(tmp_path / "venv", "linux")
    environment.fail("install")
    installer = Installer(checkout, environment.folder, "linux")
    assert installer.install("ndi") == 1
    environment.fail("nothing")
    assert installer.install("ndi") == 0
    (checkout / "pyproject.toml").write_text("", encoding="utf-8")
    environment.fail("install")
    assert installer.install("test") == 1
    assert installer.install("ndi") == 0
    assert capfd.readouterr().err.splitlines()[-1] == (
        "phosphene: the packages could not be updated; continuing with those that are installed"
    )


def test_other_versions_are_installed_where_the_lock_does_not_suit(checkout: Path, tmp_path: Path) -> None:
    environment = StandIn(tmp_path / "venv", "linux")
    environment.fail("--constraint")
    assert Installer(checkout, environment.folder, "linux").install("ndi") == 0
    assert ["--constraint" in call for call in environment.take_calls()] == [True, False]
