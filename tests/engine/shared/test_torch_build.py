"""Which build of PyTorch fits a card and its driver, and the line on a card that is not used."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from engine.shared.graphics_card import NO_DRIVER, GraphicsCard, parse_numbers
from engine.shared.torch_build import (
    CUDA_BUILDS,
    TorchBuild,
    capabilities,
    describe_card,
    explain_unused,
    fitting_builds,
    read_torch_build,
    runs,
)

CPU, PYPI_LINUX = TorchBuild("2.13.0+cpu"), TorchBuild("2.13.0+cu130", "13.0")


def nvidia(driver: str, capability: tuple[int, int] = (8, 9)) -> GraphicsCard:
    return GraphicsCard("NVIDIA", "NVIDIA card", driver, capability)


@pytest.mark.parametrize(
    ("driver", "capability", "windows", "linux"),
    [
        ("581.29", (8, 9), [(13, 0), (12, 6)], [(13, 0), (12, 6), (12, 9)]),  # RTX 40
        ("580.0", (12, 0), [(13, 0)], [(13, 0), (12, 9)]),  # RTX 50
        ("579.99", (12, 0), [(12, 8)], [(12, 9)]),
        ("551.23", (8, 6), [(12, 6)], [(12, 6), (12, 9)]),  # RTX 30
        ("581.29", (6, 1), [(12, 6)], [(12, 6)]),  # GTX 10
        ("581.29", (7, 0), [(12, 6)], [(12, 6)]),  # Titan V
        ("581.29", (7, 5), [(13, 0), (12, 6)], [(13, 0), (12, 6), (12, 9)]),  # RTX 20
        ("528.02", (8, 6), [(12, 6)], [(12, 6), (12, 9)]),
        ("525.60", (8, 6), [], [(12, 6), (12, 9)]),
        ("524.99", (8, 6), [], []),
        ("470.82", (3, 5), [], []),  # GTX 7
        ("581.29", (3, 5), [], []),
        ("581.29", (0, 0), [(13, 0), (12, 6)], [(13, 0), (12, 6), (12, 9)]),  # not known
        ("", (0, 0), [(13, 0), (12, 6)], [(13, 0), (12, 6), (12, 9)]),
    ],
)
def test_the_builds_that_run_on_a_card(
    driver: str, capability: tuple[int, int], windows: list[tuple[int, int]], linux: list[tuple[int, int]]
) -> None:
    assert fitting_builds(nvidia(driver, capability), "win32") == windows
    assert fitting_builds(nvidia(driver, capability), "linux") == linux


def test_cards_of_others_have_no_build() -> None:
    assert fitting_builds(None, "win32") == fitting_builds(GraphicsCard("AMD", "AMD card"), "linux") == []


def test_the_capabilities_are_those_that_the_locked_torch_lists() -> None:
    """Torch names, for each build of its version, the capabilities that it has code for."""
    releases = getattr(torch.cuda, "PYTORCH_RELEASES_CODE_CC", None)
    if releases is None:
        pytest.skip("an older torch than the locked one has no such list")
    for release, machines in releases.items():
        cuda, codes = parse_numbers(release), sorted(machines["x86_64"])
        lowest, highest = capabilities(cuda)
        assert lowest == divmod(codes[0], 10)
        assert divmod(codes[-1], 10) <= highest
        assert (highest >= (12, 0)) == (120 in codes)
    published = {parse_numbers(release) for release in releases}
    assert {cuda for cuda, (_, versions) in CUDA_BUILDS.items() if not versions} <= published


@pytest.mark.parametrize(
    ("text", "build"),
    [
        ("__version__ = '2.13.0+cpu'\ncuda: Optional[str] = None\nhip: Optional[str] = None\n", CPU),
        ("__version__ = '2.13.0+cu130'\ncuda: Optional[str] = '13.0'\nhip: Optional[str] = None\n", PYPI_LINUX),
        ('__version__ = "2.8.0"\ncuda = "12.8"\nhip = None\n', TorchBuild("2.8.0", "12.8")),
        (
            "__version__ = '2.13.0+rocm7.2'\ncuda: Optional[str] = None\nhip: Optional[str] = '7.2.26015'\n",
            TorchBuild("2.13.0+rocm7.2", "", "7.2.26015"),
        ),
    ],
)
def test_the_installed_build_is_read_from_its_file(tmp_path: Path, text: str, build: TorchBuild) -> None:
    assert read_torch_build(tmp_path) is None
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "version.py").write_text(f"from typing import Optional\n\n{text}", encoding="utf-8")
    assert read_torch_build(tmp_path) == build


def test_the_file_of_this_torch_says_what_torch_says() -> None:
    build = read_torch_build(Path(torch.__path__[0]).parent)
    assert build == TorchBuild(torch.__version__, torch.version.cuda or "", torch.version.hip or "")


@pytest.mark.parametrize(
    ("card", "build", "system", "line"),
    [
        (None, CPU, "win32", ""),
        (
            nvidia("581.29"),
            CPU,
            "win32",
            "NVIDIA card (driver 581.29) is not used: PyTorch 2.13.0+cpu is a build without CUDA; run: "
            '"python" -m pip install --force-reinstall --no-deps torch==2.13.0 --index-url '
            "https://download.pytorch.org/whl/cu130",
        ),
        (
            nvidia("550.54"),
            PYPI_LINUX,
            "linux",
            "NVIDIA card (driver 550.54) is not used: it does not run PyTorch with CUDA 13.0; run: "
            '"python" -m pip install --force-reinstall torch==2.13.0 --index-url '
            "https://download.pytorch.org/whl/cu126",
        ),
        (
            nvidia("572.16", (12, 0)),
            CPU,
            "win32",
            "NVIDIA card (driver 572.16) is not used: PyTorch 2.13.0+cpu is a build without CUDA; run: "
            '"python" -m pip install --force-reinstall --no-deps "torch>=2.8,<2.12" --index-url '
            "https://download.pytorch.org/whl/cu128",
        ),
        (
            nvidia("581.29"),
            PYPI_LINUX,
            "linux",
            "NVIDIA card (driver 581.29) is not used: CUDA 13.0 does not start; restart the machine or update the "
            "driver",
        ),
        (
            nvidia("470.82"),
            PYPI_LINUX,
            "linux",
            "NVIDIA card (driver 470.82) is not used: PyTorch needs driver 525 or newer; update it from "
            "https://www.nvidia.com/drivers",
        ),
        (
            nvidia("511.65"),
            CPU,
            "win32",
            "NVIDIA card (driver 511.65) is not used: PyTorch needs driver 528 or newer; update it from "
            "https://www.nvidia.com/drivers",
        ),
        (
            nvidia("470.82", (3, 5)),
            CPU,
            "win32",
            "NVIDIA card (driver 470.82) is not used: PyTorch needs a GeForce GTX 900 or newer",
        ),
        (
            GraphicsCard("NVIDIA", "NVIDIA card", NO_DRIVER),
            PYPI_LINUX,
            "linux",
            "NVIDIA card is not used: it has no NVIDIA driver; install it from https://www.nvidia.com/drivers or your "
            "system's packages",
        ),
        (
            GraphicsCard("AMD", "AMD card"),
            PYPI_LINUX,
            "linux",
            'AMD card is not used: if ROCm supports it, run (untried): "python" -m pip install --force-reinstall '
            '"torch>=2.8,<2.14" --index-url https://download.pytorch.org/whl/rocm7.2',
        ),
        (
            GraphicsCard("AMD", "Radeon"),
            CPU,
            "win32",
            "Radeon is not used: PyTorch has no build for AMD cards on Windows",
        ),
        (GraphicsCard("AMD", "AMD card"), TorchBuild("2.13.0+rocm7.2", "", "7.2"), "linux", ""),
    ],
)
def test_a_card_that_is_not_used_is_one_line_with_the_remedy(
    card: GraphicsCard | None, build: TorchBuild, system: str, line: str
) -> None:
    assert explain_unused(card, build, "python", system) == line
    assert "\n" not in line


def test_each_machine_is_described_in_one_line() -> None:
    assert describe_card(None, "darwin", "python") == ""
    assert describe_card(None, "win32", "python").startswith("no NVIDIA or AMD graphics card was detected")
    assert describe_card(nvidia("581.29"), "win32", "python") == "NVIDIA card (driver 581.29): PyTorch with CUDA 13.0"
    assert "needs driver 525" in describe_card(nvidia("470.1"), "linux", "python")
    assert "rocm7.2" in describe_card(GraphicsCard("AMD", "AMD card"), "linux", "python")


@pytest.mark.parametrize(("cuda", "result"), [("13.2", True), ("12.4", True), ("11.8", True), ("14.0", True)])
def test_builds_that_are_not_in_the_table_are_judged_too(cuda: str, result: bool) -> None:
    assert runs(parse_numbers(cuda), nvidia("595.10"), "linux") is result
    assert not runs(parse_numbers(cuda), nvidia("440.10"), "linux")
