"""Which build of PyTorch a graphics card needs, which one is installed, and why a card is not used.

PyPI's torch is CPU-only on Windows and made with CUDA 13.0 on Linux; PyTorch's own index has the other builds. Uses the
standard library alone, as ``engine.shared.graphics_card`` does.

Sources: ``PYTORCH_RELEASES_CODE_CC`` in torch 2.13's ``torch/cuda/__init__.py`` (compute capabilities of each build);
pytorch/test-infra pull request 8215 (torch 2.13 has 12.6, 13.0 and 13.2, on Linux 12.9 too); NVIDIA's CUDA release
notes, table of minimum drivers.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path

from engine.shared.graphics_card import AMD, NO_DRIVER, NVIDIA, GraphicsCard, parse_numbers

#: Where PyTorch's builds are; a folder for each.
INDEX = "https://download.pytorch.org/whl/"
DRIVER_PAGE = "https://www.nvidia.com/drivers"
#: CUDA releases to install from PyTorch's index, the best first → systems with a wheel, and the versions of torch that
#: have it ("": the locked one). Nothing of torch 2.13 on Windows serves an RTX 50 with a driver below 580.
CUDA_BUILDS: dict[tuple[int, int], tuple[tuple[str, ...], str]] = {
    (13, 0): (("win32", "linux"), ""),
    (12, 6): (("win32", "linux"), ""),
    (12, 9): (("linux",), ""),
    (12, 8): (("win32",), "torch>=2.8,<2.12"),
}
#: CUDA of PyPI's torch on Linux.
PYPI_CUDA_ON_LINUX = (13, 0)
#: Versions of torch that Phosphene works with; pyproject.toml says the same.
TORCH_VERSIONS = "torch>=2.8,<2.14"
#: ROCm build for AMD cards on Linux.
ROCM_INDEX = INDEX + "rocm7.2"
#: Oldest card that any build has code for.
MIN_CAPABILITY = (5, 0)


@dataclass(frozen=True)
class TorchBuild:
    """The torch in an environment: its version, and the CUDA or ROCm release that it was built with ("": none)."""

    version: str
    cuda: str = ""
    rocm: str = ""


def min_driver(cuda: tuple[int, ...], system: str) -> int:
    """Return the oldest major driver version that runs a CUDA release: all of CUDA 12 run where 12.0 does."""
    if cuda >= (13,):
        return 580
    if cuda >= (12,):
        return 528 if system == "win32" else 525
    return 452


def capabilities(cuda: tuple[int, ...]) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the lowest and the highest compute capability that PyTorch's build for a CUDA release has code for."""
    if cuda >= (12, 9):
        return (7, 5), (99, 0)
    if cuda >= (12, 8):
        return (7, 0), (99, 0)
    return MIN_CAPABILITY, (9, 9)


def runs(cuda: tuple[int, ...], card: GraphicsCard, system: str) -> bool:
    """Return whether PyTorch built with a CUDA release runs on a card with its driver; unknown figures pass."""
    lowest, highest = capabilities(cuda)
    fits_card = card.capability == (0, 0) or lowest <= card.capability <= highest
    major = 0 if card.driver == NO_DRIVER else (*parse_numbers(card.driver), min_driver(cuda, system))[0]
    return fits_card and major >= min_driver(cuda, system)


def fitting_builds(card: GraphicsCard | None, system: str) -> list[tuple[int, int]]:
    """Return the CUDA releases of PyTorch's index that run on ``card``, the best first.

    Those that only an older torch has come in where there is no other.
    """
    if card is None or card.maker != NVIDIA:
        return []
    family = "win32" if system == "win32" else "linux"
    fitting = [cuda for cuda, (systems, _) in CUDA_BUILDS.items() if family in systems and runs(cuda, card, system)]
    return [cuda for cuda in fitting if not CUDA_BUILDS[cuda][1]] or fitting


def index_url(cuda: tuple[int, ...]) -> str:
    """Return the index of PyTorch's builds with a CUDA release."""
    return f"{INDEX}cu{cuda[0]}{cuda[1]}"


def requirement(cuda: tuple[int, int], locked: str) -> str:
    """Return what to install from the index of a CUDA release: ``locked``, or a range where that has no such build."""
    return CUDA_BUILDS[cuda][1] or locked


def read_torch_build(packages: Path) -> TorchBuild | None:
    """Return the torch in a ``site-packages`` folder, from the file that torch's build writes; None without one.

    Importing it would take seconds, and fails with a broken driver.
    """
    try:
        text = (packages / "torch" / "version.py").read_text("utf-8", "replace")
    except OSError:
        return None
    values = dict(re.findall(r"^(\w+)(?:\s*:[^=\n]+)?\s*=\s*['\"]([^'\"]*)['\"]", text, re.MULTILINE))
    return TorchBuild(values.get("__version__", ""), values.get("cuda", ""), values.get("hip", ""))


def describe_card(card: GraphicsCard | None, system: str, python: str) -> str:
    """Return one line on what ``python`` gets for a card; "" on macOS, whose torch has one build for all."""
    if system == "darwin":
        return ""
    if card is None:
        return "no NVIDIA or AMD graphics card was detected: Phosphene runs on the processor"
    if card.maker == AMD:
        return explain_amd(card, system, python)
    fitting = fitting_builds(card, system)
    if not fitting:
        return explain_no_build(card, system)
    return f"{card}: PyTorch with CUDA {'.'.join(map(str, fitting[0]))}"


def explain_no_build(card: GraphicsCard, system: str) -> str:
    """Return why no build runs on an NVIDIA card, with the remedy."""
    if card.capability != (0, 0) and card.capability < MIN_CAPABILITY:
        return f"{card} is not used: PyTorch needs a GeForce GTX 900 or newer"
    if card.driver == NO_DRIVER:
        return f"{card} is not used: it has no NVIDIA driver; install it from {DRIVER_PAGE} or your system's packages"
    oldest = min_driver((13,) if card.capability >= (10, 0) else (12,), system)
    return f"{card} is not used: PyTorch needs driver {oldest} or newer; update it from {DRIVER_PAGE}"


def explain_amd(card: GraphicsCard, system: str, python: str) -> str:
    """Return one line on a card of AMD."""
    if system == "win32":
        return f"{card} is not used: PyTorch has no build for AMD cards on Windows"
    command = f'"{python}" -m pip install --force-reinstall "{TORCH_VERSIONS}" --index-url {ROCM_INDEX}'
    return f"{card} is not used: if ROCm supports it, run (untried): {command}"


def install_command(cuda: tuple[int, int], locked: str, python: str, system: str) -> str:
    """Return the command that replaces the torch of ``python`` by the build for a CUDA release.

    On Linux that needs other CUDA libraries too; on Windows they are inside torch.
    """
    options = "--force-reinstall --no-deps" if system == "win32" else "--force-reinstall"
    text = requirement(cuda, locked)
    text = f'"{text}"' if "<" in text else text  # "<" is the shell's
    return f'"{python}" -m pip install {options} {text} --index-url {index_url(cuda)}'


def explain_unused(card: GraphicsCard | None, build: TorchBuild, python: str, system: str = "") -> str:
    """Return one line on a card that the torch of ``python`` does not use, with the remedy; "" without such a card.

    To be called where torch found no device but the processor.
    """
    system = system or sys.platform
    if card is None or (card.maker == AMD and build.rocm):
        return ""
    if card.maker == AMD:
        return explain_amd(card, system, python)
    fitting = fitting_builds(card, system)
    if not fitting:
        return explain_no_build(card, system)
    command = install_command(fitting[0], f"torch=={build.version.partition('+')[0]}", python, system)
    if not build.cuda:
        return f"{card} is not used: PyTorch {build.version} is a build without CUDA; run: {command}"
    if not runs(parse_numbers(build.cuda), card, system):
        return f"{card} is not used: it does not run PyTorch with CUDA {build.cuda}; run: {command}"
    return f"{card} is not used: CUDA {build.cuda} does not start; restart the machine or update the driver"
