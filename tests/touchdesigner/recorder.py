"""A stand-in for TouchDesigner's Python that refuses what TouchDesigner does not have.

What it has is written down here from the vendor's documentation (docs.derivative.ca: the operators' pages, COMP, OP, Page and Par Class):
operators with their own parameters, methods, the rule for custom names, which family may be wired to which.
"""

from __future__ import annotations

import re
import types
from typing import Any

#: Operator types that may be created, with those of their parameters that we use or could confuse.
OPERATORS: dict[str, set[str]] = {
    "baseCOMP": {"parentshortcut", "opshortcut", "ext0object", "ext0name", "ext0promote", "initextonstart", "reinitextensions"},
    "inTOP": {"label"},
    "outTOP": {"label"},
    "switchTOP": {"index", "blend", "extend"},
    "syphonspoutinTOP": {"usespoutactivesender", "sendername"},
    "syphonspoutoutTOP": {"active", "sendername"},
    "ndiinTOP": {"active", "name", "extraips", "bandwidth"},
    "ndioutTOP": {"active", "name", "failovername", "fps"},
    "oscoutDAT": {"active", "protocol", "address", "port", "localaddress", "shared"},
    "oscinDAT": {
        "active", "protocol", "address", "port", "localaddress", "shared", "addscope", "typetag", "splitbundle", "splitmessage",
        "bundletimestamp", "callbacks", "executeloc", "fromop", "clamp", "maxlines", "clear", "bytes",
    },
    "parameterexecuteDAT": {
        "active", "op", "pars", "valuechange", "valueschanged", "onpulse", "expressionchange", "exportchange", "enablechange", "modechange",
        "custom", "builtin",
    },
    "executeDAT": {"active", "start", "create", "exit", "framestart", "frameend", "playstatechange", "devicechange"},
    "textDAT": {"file", "syncfile"},
}  # fmt: skip
STYLES = {"Float", "Int", "Str", "Toggle", "Pulse", "Menu", "File", "Header"}
CUSTOM_NAME = re.compile(r"[A-Z][a-z0-9]*")


class Refused(Exception):
    """TouchDesigner has no such thing."""


class Strict:
    """An object that takes no attribute that its class does not name."""

    ALLOWED: frozenset[str] = frozenset()

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in self.ALLOWED and not name.startswith("_"):
            raise Refused(f"{type(self).__name__} has no member {name!r} to set")
        object.__setattr__(self, name, value)


class Par(Strict):
    """One parameter."""

    ALLOWED = frozenset(
        {
            "val",
            "expr",
            "default",
            "min",
            "max",
            "clampMin",
            "clampMax",
            "normMin",
            "normMax",
            "menuNames",
            "menuLabels",
        }
        | {"help", "readOnly", "label", "startSection", "enable"}
    )

    def __init__(self, owner: Operator, name: str, style: str = "") -> None:
        self._owner, self._name, self._style = owner, name, style
        self._menu: list[str] | None = [] if style == "Menu" else None
        self._labels: list[str] | None = [] if style == "Menu" else None
        self._value: Any = {"Float": 0.0, "Int": 0, "Toggle": False}.get(style, "")
        self.min, self.max, self.clampMin, self.clampMax, self.normMin, self.normMax = 0.0, 1.0, False, False, 0.0, 1.0
        self.expr, self.help, self.default, self.readOnly, self.label = "", "", self._value, False, name

    name = property(lambda self: self._name)
    style = property(lambda self: self._style)

    @property
    def menuNames(self) -> Any:
        return self._menu

    @menuNames.setter
    def menuNames(self, names: list[str]) -> None:
        self._only("Menu")
        self._menu = list(names)

    @property
    def menuLabels(self) -> Any:
        return self._labels

    @menuLabels.setter
    def menuLabels(self, labels: list[str]) -> None:
        self._only("Menu")
        assert self._menu is not None
        if len(labels) != len(self._menu):
            raise Refused(f"{self._name}: {len(labels)} labels for {len(self._menu)} choices")
        self._labels = list(labels)

    @property
    def val(self) -> Any:
        return self._value

    @val.setter
    def val(self, value: Any) -> None:
        if self._style in ("Float", "Int"):
            value = float(value) if self._style == "Float" else int(value)
            value = max(value, self.min) if self.clampMin else value
            value = min(value, self.max) if self.clampMax else value
        elif self._style == "Toggle":
            value = bool(value)
        elif self._style == "Menu" and value not in (self._menu or ()):
            raise Refused(f"{self._name} has no choice {value!r}, but {self._menu}")
        elif self._style == "Pulse":
            raise Refused(f"{self._name} is a pulse and holds nothing")
        was, self._value = self._value, value
        if was != value and self._style:
            self._owner._changed.append((self, was))

    def eval(self) -> Any:
        if self.expr:
            return self._owner._evaluated(self.expr)
        return self._value

    def pulse(self) -> None:
        self._only("Pulse")
        self._owner._pulsed.append(self)

    def destroy(self) -> None:
        if not self._style:
            raise Refused("only custom parameters can be destroyed")
        del self._owner._custom[self._name]

    def _only(self, style: str) -> None:
        if self._style != style:
            raise Refused(f"{self._name} is no {style} but {self._style or 'built in'}")

    def __eq__(self, other: object) -> bool:
        return bool(self.eval() == (other.eval() if isinstance(other, Par) else other))

    def __bool__(self) -> bool:
        return bool(self.eval())

    __hash__ = object.__hash__


class Pars:
    """``op.par``: built in and custom parameters, by attribute and by index."""

    def __init__(self, owner: Operator) -> None:
        object.__setattr__(self, "_owner", owner)

    def __getitem__(self, name: str) -> Par | None:
        found = self._owner._custom.get(name)
        if found is None and name in OPERATORS[self._owner.opType]:
            found = self._owner._builtin.setdefault(name, Par(self._owner, name))
        return found

    def __getattr__(self, name: str) -> Par:
        found = self[name]
        if found is None:
            raise Refused(f"{self._owner.opType} has no parameter {name!r}")
        return found

    def __setattr__(self, name: str, value: Any) -> None:
        getattr(self, name).val = value


class Page(Strict):
    """A custom page."""

    def __init__(self, owner: Operator, name: str) -> None:
        self._owner, self._name, self._pars = owner, name, []

    name = property(lambda self: self._name)
    pars = property(lambda self: list(self._pars))

    def __getattr__(self, method: str) -> Any:
        if not method.startswith("append") or method[6:] not in STYLES:
            raise Refused(f"a page has no method {method!r}")

        def append(name: str, label: str | None = None) -> list[Par]:
            if not CUSTOM_NAME.fullmatch(name):
                raise Refused(f"{name!r} is no name for a custom parameter")
            if name in self._owner._custom:
                raise Refused(f"{name} is there already")
            made = Par(self._owner, name, method[6:])
            made.label = label or name
            self._owner._custom[name] = made
            self._pars.append(made)
            return [made]

        return append


class Connector:
    """An end of a wire."""

    def __init__(self, owner: Operator, out: bool) -> None:
        self.owner, self._out = owner, out
        self.connections: list[Connector] = []

    def connect(self, other: Connector) -> None:
        if not self._out or other._out or self.owner.family != other.owner.family:
            raise Refused(f"{self.owner.name} cannot be wired to {other.owner.name}")
        self.connections.append(other)
        other.connections = [self]


class Operator(Strict):
    """A node."""

    ALLOWED = frozenset({"comment", "color", "nodeX", "nodeY", "text", "viewer"})

    def __init__(self, kind: str, name: str, above: Operator | None) -> None:
        if kind not in OPERATORS:
            raise Refused(f"there is no operator {kind!r}")
        self._kind, self._name, self._above = kind, name, above
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
        self._be("DAT")
        return self._text

    @text.setter
    def text(self, text: str) -> None:
        self._be("DAT")
        self._text = text

    @property
    def module(self) -> Any:
        """The DAT's text as a module; ``parent`` is there as it is in TouchDesigner."""
        self._be("DAT")
        if self._module is None:
            self._module = types.ModuleType(self._name)
            vars(self._module)["parent"] = lambda: self._above
            exec(compile(self._text, f"{self._name}.py", "exec"), vars(self._module))
        return self._module

    @property
    def ext(self) -> Any:
        return types.SimpleNamespace(**({type(self._extension).__name__: self._extension} if self._extension else {}))

    def op(self, path: str) -> Operator | None:
        return self._children.get(path.removeprefix("./"))

    def create(self, kind: str, name: str) -> Operator:
        self._be("COMP")
        if name in self._children:
            raise Refused(f"{name} is there already, it would be called {name}1")
        self._children[name] = Operator(kind, name, self)
        return self._children[name]

    def destroy(self) -> None:
        if self._extension is not None:
            self._extension.onDestroyTD()
        if self._above is not None:
            del self._above._children[self._name]

    def appendCustomPage(self, name: str) -> Page:
        self._be("COMP")
        self._pages.append(Page(self, name))
        return self._pages[-1]

    def initializeExtensions(self, _index: int | None = None) -> Any:
        self._be("COMP")
        self._extension = self._evaluated(self.par.ext0object.val)
        return self._extension

    def save(self, path: str) -> str:
        self._be("COMP")
        self._saved = path
        return path

    def sendOSC(self, address: str, values: list[Any], asBundle: bool = False, useNonStandardTypes: bool = True) -> int:
        if self._kind not in ("oscoutDAT", "oscinDAT"):
            raise Refused(f"{self._kind} sends no OSC")
        if not isinstance(values, list):
            raise Refused("the values of a message are a list")
        self._sent.append((address, values))
        return 0

    def _evaluated(self, expression: str) -> Any:
        """An expression as this operator's parameters see it."""
        inside = self if self.family == "COMP" else self._above
        assert inside is not None
        value = eval(expression, {"parent": lambda: self._above, "op": inside.op, "me": self})
        return value.eval() if isinstance(value, Par) else value

    def _be(self, family: str) -> None:
        if self.family != family:
            raise Refused(f"{self._kind} is no {family}")


class TouchDesigner:
    """An open project, and the frames that pass in it."""

    def __init__(self) -> None:
        self.root = Operator("baseCOMP", "/", None)
        self.project = self.root.create("baseCOMP", "project1")

    def module(self) -> types.ModuleType:
        """What ``import td`` gives."""
        made = types.ModuleType("td")
        made.__dict__["op"] = {"/": self.root, "/project1": self.project}.get
        return made

    def frame(self, component: Operator) -> None:
        """One frame: what changed and what was pressed is told to the Parameter Execute DAT, and the Execute DAT is called."""
        watch, every = component.op("parameters_callbacks"), component.op("frame_callbacks")
        assert watch is not None and every is not None  # noqa: PT018 -- for the type checker
        assert watch.par.active.val
        assert watch.par.op.val == ".."
        assert watch.par.custom.val
        if every.par.framestart.val and every.par.active.val:
            every.module.onFrameStart(0)
        changed, component._changed = component._changed, []
        for par, was in changed:
            if watch.par.valuechange.val and par.name in component._custom:
                watch.module.onValueChange(par, par.eval(), was)
        pulsed, component._pulsed = component._pulsed, []
        for par in pulsed:
            if watch.par.onpulse.val:
                watch.module.onPulse(par)

    def receive(self, component: Operator, address: str, args: list[Any]) -> None:
        """An OSC message for the OSC In DAT."""
        listening = component.op("osc_in")
        assert listening is not None
        assert listening.par.active.eval()
        callbacks = component.op(listening.par.callbacks.val)
        assert callbacks is not None
        callbacks.module.onReceiveOSC(listening, 0, "", b"", 0.0, address, args, None)
