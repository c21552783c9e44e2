"""Names of textures as TouchDesigner lists them."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from tests.touchdesigner.simulator import Operator, TouchDesigner
from tests.touchdesigner.wire import Wire, built, par

__all__ = ["built"]  # a fixture
HERE = socket.gethostname().upper()


@pytest.fixture
def names(built: tuple[TouchDesigner, Operator]) -> Any:
    operator = built[1].op("texture_names")
    assert operator is not None
    return operator.module


@pytest.mark.parametrize(
    ("listed", "current", "selected"),
    [
        ([], "", "phosphene-out"),
        (["phosphene-out", "Arena - Composition"], "", "phosphene-out"),
        (["Arena:Composition", "Python:phosphene-out"], "", "Python:phosphene-out"),
        (["Python:phosphene-out-2", "Python:not phosphene-out"], "", "phosphene-out"),
        ([":phosphene-out"], "", ":phosphene-out"),
        (["A:phosphene-out", "B:phosphene-out"], "B:phosphene-out", "B:phosphene-out"),
        (["A:phosphene-out"], "B:phosphene-out", "A:phosphene-out"),
    ],
)
def test_the_texture_sender(names: Any, listed: list[str], current: str, selected: str) -> None:
    assert names.match_sender(listed, "phosphene-out", current) == selected


@pytest.mark.parametrize(
    ("host", "listed", "selected"),
    [
        ("stage", [], "STAGE (phosphene-out)"),
        ("stage", ["STAGE (phosphene-out)", "B (phosphene-out)"], "STAGE (phosphene-out)"),
        ("mac.local", ["MAC.LOCAL (phosphene-out)"], "MAC.LOCAL (phosphene-out)"),
        ("mac.local", ["B (phosphene-out)", "MAC (phosphene-out)"], "MAC (phosphene-out)"),
        ("visuals-workstation-2", ["VISUALS-WORKSTA (phosphene-out)", "B (phosphene-out)"],
         "VISUALS-WORKSTA (phosphene-out)"),
        ("stage", ["B (phosphene-out)", "B (phosphene-in)"], "B (phosphene-out)"),
        ("stage", ["B (phosphene-out)", "C (phosphene-out)"], "STAGE (phosphene-out)"),
        ("stage", ["STAGE (not phosphene-out)", "B (x (phosphene-out))"], "STAGE (phosphene-out)"),
    ],
)  # fmt: skip
def test_the_ndi_source(
    monkeypatch: pytest.MonkeyPatch, names: Any, host: str, listed: list[str], selected: str
) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: host)
    assert names.match_ndi_source(listed, "phosphene-out") == selected


def test_the_component_follows_what_touchdesigner_lists(built: tuple[TouchDesigner, Operator]) -> None:
    touch, component = built
    wire = Wire(touch, component, 9)
    shared, ndi = component.op("shared"), component.op("ndi_in")
    assert shared is not None
    assert ndi is not None
    wire.advance(0.1)
    assert shared.par.sendername.eval() == "phosphene-out"
    shared.par.sendername._menu = ["TouchDesigner:phosphene-in", "Python:phosphene-out"]
    wire.advance(until=lambda: shared.par.sendername.eval() == "Python:phosphene-out")
    shared.par.sendername._menu = []
    wire.advance(until=lambda: shared.par.sendername.eval() == "phosphene-out")
    component.par.Receivername = "second"
    wire.advance(until=lambda: shared.par.sendername.eval() == "second")
    component.par.Transport = "ndi"
    ndi.par.name._menu = ["B (second)"]
    wire.advance(until=lambda: ndi.par.name.eval() == "B (second)")
    ndi.par.name._menu = ["B (second)", f"{HERE} (second)"]
    wire.advance(until=lambda: ndi.par.name.eval() == f"{HERE} (second)")
    component.par.Ndisource = "C (other)"
    wire.advance(until=lambda: ndi.par.name.eval() == "C (other)")
    assert par(component, "Error").val == ""
    wire.close()
