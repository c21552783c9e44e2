"""What is missing to compile: said at once, on every system, instead of failing for minutes at each start."""

from __future__ import annotations

from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils import cpp_extension

from engine.compile import requirements
from engine.compile.requirements import missing_requirement, toolkit_environment

CUDA, CPU, MPS = (torch.device(name) for name in ("cuda", "cpu", "mps"))


class Machine:
    """A machine that ``torch`` and the system report instead of this one; everything is there at first."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self._monkeypatch, self._triton = monkeypatch, folder / "triton"
        self.set(system="Linux", compilers={"g++", "cl", "clang++"}, hip=None, cuda="13.0", answers=True)
        self.set(capability=(8, 9), triton=True, cuda_home="/usr/local/cuda", rocm_home="/opt/rocm")

    def set(self, **properties: Any) -> None:
        patch = self._monkeypatch.setattr
        for name, value in properties.items():
            match name:
                case "system":
                    patch(requirements.platform, "system", lambda value=value: value)
                case "compilers":
                    patch(requirements.shutil, "which", lambda name, value=value: name if name in value else None)
                case "hip" | "cuda":
                    patch(torch.version, name, value)
                case "answers":
                    patch(torch.cuda, "is_available", lambda value=value: value)
                case "capability":
                    patch(torch.cuda, "get_device_capability", lambda _device, value=value: value)
                    patch(torch.cuda, "get_device_name", lambda _device: "GeForce GTX 1080")
                case "triton":
                    patch(requirements, "find_spec", self._spec if value else lambda _name: None)
                case "cuda_home" | "rocm_home":
                    patch(cpp_extension, name.upper(), value)
                case "torch":
                    patch(torch, "__version__", value)

    def add_headers(self) -> Path:
        """Put CUDA's headers into Triton's package and return its folder."""
        folder = self._triton / "backends" / "nvidia"
        (folder / "include").mkdir(parents=True)
        (folder / "include" / "cuda.h").touch()
        return folder

    def _spec(self, name: str) -> ModuleSpec:
        spec = ModuleSpec(name, None, is_package=True)
        assert spec.submodule_search_locations is not None
        spec.submodule_search_locations.append(str(self._triton))
        return spec


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    return Machine(monkeypatch, tmp_path)


def test_a_complete_machine_lacks_nothing(machine: Machine) -> None:
    assert missing_requirement(CUDA) == missing_requirement(CPU) == missing_requirement(CUDA, "auto") == ""
    machine.set(hip="6.4", cuda=None, capability=(0, 0), cuda_home=None)
    assert missing_requirement(CUDA) == "", "ROCm needs neither CUDA's toolkit nor a capability"


@pytest.mark.parametrize(
    ("properties", "words"),
    [
        ({"system": "Windows"}, ["on Windows", "CUDA graphs", "--accelerate tensorrt"]),
        ({"system": "Windows", "answers": False}, ["on Windows"]),
        ({"system": "Windows", "hip": "6.4", "cuda": None}, ["on Windows", "CUDA graphs"]),
        ({"answers": False}, ["driver", "CUDA 13.0"]),
        ({"answers": False, "hip": "6.4", "cuda": None}, ["driver", "ROCm"]),
        ({"capability": (6, 1)}, ["7.0", "GTX 1080", "6.1"]),
        ({"triton": False}, ["pip install triton"]),
        ({"triton": False, "hip": "6.4", "cuda": None}, ["pip install triton"]),
        ({"cuda_home": None}, ["CUDA toolkit", "CUDA_HOME"]),
        ({"cuda_home": ""}, ["CUDA toolkit", "CUDA_HOME"]),
        ({"hip": "6.4", "cuda": None, "rocm_home": None}, ["ROCm toolkit", "ROCM_HOME"]),
        ({"compilers": set()}, ["g++", "apt install"]),
        ({"torch": "2.7.1+cu128"}, ["torch 2.8"]),
    ],
    ids=str,
)
def test_one_line_says_what_a_gpu_lacks(properties: dict[str, Any], words: list[str], machine: Machine) -> None:
    machine.set(**properties)
    line = missing_requirement(CUDA)
    assert "\n" not in line
    assert all(word in line for word in words), line


def test_the_line_for_a_processor_says_nothing_of_a_gpu(machine: Machine) -> None:
    machine.set(answers=False, triton=False, cuda_home=None, rocm_home=None, cuda=None)
    for system in ("Linux", "Windows", "Darwin"):
        machine.set(system=system)
        assert missing_requirement(CPU) == ""
    machine.set(system="Darwin", compilers={"g++"})
    assert "xcode-select" in missing_requirement(CPU)
    machine.set(system="Windows")
    assert "Visual Studio" in missing_requirement(CPU)
    assert missing_requirement(MPS) == "mps is not supported"


def test_the_headers_in_tritons_package_stand_in_for_a_toolkit(machine: Machine) -> None:
    assert toolkit_environment(CUDA) == {}
    machine.set(cuda_home=None)
    assert "CUDA toolkit" in missing_requirement(CUDA)
    folder = machine.add_headers()
    assert missing_requirement(CUDA) == ""
    assert toolkit_environment(CUDA) == {"CUDA_HOME": str(folder)}
    assert toolkit_environment(CPU) == {}
    machine.set(hip="6.4", cuda=None)
    assert toolkit_environment(CUDA) == {}
    machine.set(hip=None, cuda="13.0", cuda_home="/opt/cuda")
    assert toolkit_environment(CUDA) == {}, "the user's toolkit comes first"


def test_graphs_need_a_gpu_alone(machine: Machine) -> None:
    machine.set(system="Windows", compilers=set(), triton=False, cuda_home=None)
    assert missing_requirement(CUDA, "graphs") == ""
    assert "NVIDIA or AMD" in missing_requirement(CPU, "graphs")
    assert "NVIDIA or AMD" in missing_requirement(MPS, "graphs")
