"""A strict simulation of TouchDesigner's Python: it rejects whatever TouchDesigner does not document.

Source: docs.derivative.ca, the classes App, COMP, OP and Page. Covered are methods, the rule for custom names, which
families of operators can be wired together, and the arguments that old and new builds give to a callback.
"""

from __future__ import annotations

import re
import types
from collections.abc import Callable
from typing import Any

from tests.touchdesigner.simulated_parameters import (
    CUSTOM_NAME,
    OPERATORS,
    OPERATORS_2022,
    STYLES,
    Par,
    Pars,
    Strict,
    Unsupported,
    tdAttributeError,
)


class Page(Strict):
    """A page of custom parameters."""

    def __init__(self, owner: Operator, name: str) -> None:
        self._owner, self._name, self._pars = owner, name, []

    name = property(lambda self: self._name)
    pars = property(lambda self: list(self._pars))

    def __getattr__(self, method: str) -> Any:
        if not method.startswith("append") or method[6:] not in STYLES:
            raise Unsupported(f"a page has no method {method!r}")

        def append(name: str, label: str | None = None) -> list[Par]:
            if not CUSTOM_NAME.fullmatch(name):
                raise Unsupported(f"{name!r} is not a valid name for a custom parameter")
            if name in self._owner._custom:
                raise Unsupported(f"{name} exists already")
            par = Par(self._owner, name, method[6:])
            par.label = label or name
            self._owner._custom[name] = par
            self._pars.append(par)
            return [par]

        return append


class Connector:
    """One end of a wire."""

    def __init__(self, owner: Operator, out: bool) -> None:
        self.owner, self._out = owner, out
        self.connections: list[Connector] = []

    def connect(self, other: Connector) -> None:
        if not self._out or other._out or self.owner.family != other.owner.family:
            raise Unsupported(f"{self.owner.name} cannot be wired to {other.owner.name}")
        self.connections.append(other)
        other.connections = [self]


class Operator(Strict):
    """A node of the network."""

    ALLOWED = frozenset({"comment", "color", "nodeX", "nodeY", "text", "viewer"})

    def __init__(
        self, kind: str, name: str, parent: Operator | None, documented: dict[str, set[str]] = OPERATORS
    ) -> None:
        if kind not in documented:
            raise Unsupported(f"unknown operator type {kind!r}")
        self._documented = documented
        self._kind, self._name, self._parent = kind, name, parent
        self._builtin: dict[str, Par] = {}
        self._custom: dict[str, Par] = {}
        self._pages: list[Page] = []
        self._children: dict[str, Operator] = {}
        self._changed: list[tuple[Par, Any]] = []
        self._pulsed: list[Par] = []
        self._sent: list[tuple[str, list[Any]]] = []
        self._extension: Any = None
        self._module: Any = None
        self._inputs = [
            Connector(self, False)
            for _ in range(3 if kind == "switchTOP" else 0 if kind.endswith(("inTOP", "inDAT")) else 1)
        ]
        self._outputs = [] if kind.endswith("DAT") else [Connector(self, True)]
        self._text = ""
        self._par = Pars(self)

    name = property(lambda self: self._name)
    opType = property(lambda self: self._kind)
    family = property(lambda self: re.sub("[^A-Z]", "", self._kind))
    par = property(lambda self: self._par)
    customPages = property(lambda self: list(self._pages))
    customPars = property(lambda self: list(self._custom.values()))
    inputConnectors = property(lambda self: self._inputs)
    outputConnectors = property(lambda self: self._outputs)

    @property
    def text(self) -> str:
        self._require_family("DAT")
        return self._text

    @text.setter
    def text(self, text: str) -> None:
        self._require_family("DAT")
        self._text = text

    @property
    def module(self) -> Any:
        """The DAT's text as a module, with ``parent`` defined as in TouchDesigner."""
        self._require_family("DAT")
        if self._module is None:
            self._module = types.ModuleType(self._name)
            vars(self._module)["parent"] = lambda: self._parent
            exec(compile(self._text, f"{self._name}.py", "exec"), vars(self._module))
        return self._module

    @property
    def ext(self) -> Any:
        return types.SimpleNamespace(**({type(self._extension).__name__: self._extension} if self._extension else {}))

    def op(self, path: str) -> Operator | None:
        return self._children.get(path.removeprefix("./"))

    def create(self, kind: str, name: str) -> Operator:
        self._require_family("COMP")
        if name in self._children:
            raise Unsupported(f"{name} exists already, the new one would be called {name}1")
        self._children[name] = Operator(kind, name, self, self._documented)
        return self._children[name]

    def destroy(self) -> None:
        if self._extension is not None:
            self._extension.onDestroyTD()
        if self._parent is not None:
            del self._parent._children[self._name]

    def appendCustomPage(self, name: str) -> Page:
        self._require_family("COMP")
        self._pages.append(Page(self, name))
        return self._pages[-1]

    def initializeExtensions(self, _index: int | None = None) -> Any:
        self._require_family("COMP")
        self._extension = self._evaluate(self.par.ext0object.val)
        return self._extension

    def save(self, path: str) -> str:
        self._require_family("COMP")
        self._saved = path
        return path

    def sendOSC(self, address: str, values: list[Any], asBundle: bool = False, useNonStandardTypes: bool = True) -> int:
        if self._kind not in ("oscoutDAT", "oscinDAT"):
            raise Unsupported(f"{self._kind} cannot send OSC")
        if not isinstance(values, list):
            raise Unsupported("the values of a message must be a list")
        self._sent.append((address, values))
        return 0

    def _evaluate(self, expression: str) -> Any:
        """Evaluate an expression in the scope of this operator's parameters."""
        scope = self if self.family == "COMP" else self._parent
        assert scope is not None
        value = eval(expression, {"parent": lambda: self._parent, "op": scope.op, "me": self})
        return value.eval() if isinstance(value, Par) else value

    def _require_family(self, family: str) -> None:
        if self.family != family:
            raise Unsupported(f"{self._kind} is not a {family}")


class TouchDesigner:
    """An open project whose frames the test advances.

    ``build`` is the build's number. ``arguments`` is how many arguments this build gives to onValueChange: 3 are
    (par, val, prev), 2 are (par, prev), 1 is par alone; 0 looks at how many the callback names, as recent builds do.
    """

    def __init__(
        self, build: str = "2025.31310", arguments: int = 0, documented: dict[str, set[str]] | None = None
    ) -> None:
        self.build, self.arguments = build, arguments
        documented = documented or (OPERATORS if build >= "2023" else OPERATORS_2022)
        self.root = Operator("baseCOMP", "/", None, documented)
        self.project = self.root.create("baseCOMP", "project1")

    def module(self) -> types.ModuleType:
        """Return the module that ``import td`` yields."""
        module = types.ModuleType("td")
        app = types.SimpleNamespace(version="099", build=self.build)
        vars(module).update(
            op={"/": self.root, "/project1": self.project}.get, app=app, tdAttributeError=tdAttributeError
        )
        return module

    def call_value_change(self, callback: Callable[..., None], par: Par, previous: Any) -> None:
        """Call onValueChange with as many arguments as this build gives to it."""
        count = self.arguments or callback.__code__.co_argcount
        if count not in (1, 2, 3):
            raise Unsupported(f"onValueChange names {count} arguments")
        callback(*{1: (par,), 2: (par, previous), 3: (par, par.eval(), previous)}[count])

    def frame(self, component: Operator) -> None:
        """Advance one frame: call the Execute DAT, then report changes and pulses to the Parameter Execute DAT."""
        watch, frames = component.op("parameters_callbacks"), component.op("frame_callbacks")
        assert watch is not None
        assert frames is not None
        assert watch.par.active.val
        assert watch.par.op.val == ".."
        assert watch.par.custom.val
        if frames.par.framestart.val and frames.par.active.val:
            frames.module.onFrameStart(0)
        changed, component._changed = component._changed, []
        for par, previous in changed:
            if watch.par.valuechange.val and par.name in component._custom:
                self.call_value_change(watch.module.onValueChange, par, previous)
        pulsed, component._pulsed = component._pulsed, []
        for par in pulsed:
            if watch.par.onpulse.val:
                watch.module.onPulse(par)

    def receive(self, component: Operator, address: str, args: list[Any]) -> None:
        """Deliver an OSC message to the OSC In DAT."""
        osc_in = component.op("osc_in")
        assert osc_in is not None
        assert osc_in.par.active.eval()
        callbacks = component.op(osc_in.par.callbacks.val)
        assert callbacks is not None
        callbacks.module.onReceiveOSC(osc_in, 0, "", b"", 0.0, address, args, None)
