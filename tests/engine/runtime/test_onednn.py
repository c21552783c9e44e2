"""Builds of torch without oneDNN, as for Apple silicon: nothing asks for its operators."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from engine.compile import packing
from engine.compile.packing import pack
from engine.models import pick_dtype
from engine.runtime.onednn import has_kernels, has_operators
from engine.training.precision import autocast
from engine.worker.process import prepare
from tests.house.sources import ROOT, parse, python_files

CPU = torch.device("cpu")


@contextmanager
def _without(monkeypatch: pytest.MonkeyPatch, available: bool) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setattr(torch.ops, "mkldnn", SimpleNamespace())
        patch.setattr(torch.backends.mkldnn, "is_available", lambda: available)
        patch.setattr("platform.machine", lambda: "x86_64")
        yield


@pytest.fixture(params=[False, True], ids=["not built", "without these operators"])
def no_onednn(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Remove the operators of oneDNN, and on the first run also torch's word for their presence."""
    with _without(monkeypatch, request.param):
        yield


def test_what_is_there_is_reported() -> None:
    is_available = torch.backends.mkldnn.is_available()
    assert has_operators() == is_available
    assert has_kernels(torch.float32) == is_available
    assert not has_operators("_no_such_operator")


@pytest.mark.usefixtures("no_onednn")
def test_a_processor_without_onednn_computes_in_float32() -> None:
    assert not has_kernels(torch.bfloat16)
    assert not has_kernels(torch.float16)
    assert pick_dtype("auto", CPU) is torch.float32
    context = autocast("cpu")
    with context:
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype is torch.float32


@pytest.mark.usefixtures("no_onednn")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_graphs_stay_as_they_are_without_onednn(dtype: torch.dtype) -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 600)).to(dtype).eval()
    graph = torch.export.export(module, (torch.rand(1, 3, 8, 8, dtype=dtype),)).module(check_guards=False)
    before = [node.target for node in graph.graph.nodes]
    assert not packing.is_available()
    assert pack(graph) == {}
    assert [node.target for node in graph.graph.nodes] == before


@pytest.mark.usefixtures("no_onednn")
def test_the_standby_process_prepares_itself_without_onednn() -> None:
    threads = torch.get_num_threads()
    prepare()
    assert torch.get_num_threads() == threads
    assert np.isfinite(float(torch.ones(2).sum()))


def test_operators_of_onednn_are_named_where_their_presence_is_checked() -> None:
    users = {
        str(path.relative_to(ROOT).as_posix())
        for path in python_files("engine", "bridge")
        for node in ast.walk(parse(path))
        if isinstance(node, ast.Attribute) and node.attr == "mkldnn"
    }
    assert users == {"engine/runtime/onednn.py", "engine/compile/packing.py"}
