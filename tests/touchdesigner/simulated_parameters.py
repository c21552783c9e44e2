"""Operators and parameters of the simulated TouchDesigner: what exists, and how a value is checked.

Source: docs.derivative.ca, the pages of the operators and of the class Par.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.touchdesigner.simulator import Operator

#: Operator type → the parameters that the component uses, or that are easily confused with them.
OPERATORS: dict[str, set[str]] = {
    "baseCOMP": {
        "parentshortcut", "opshortcut", "ext0object", "ext0name", "ext0promote", "initextonstart", "reinitextensions",
    },
    "inTOP": {"label"},
    "outTOP": {"label"},
    "switchTOP": {"index", "blend", "extend"},
    "syphonspoutinTOP": {"usespoutactivesender", "sendername"},
    "syphonspoutoutTOP": {"active", "sendername"},
    "ndiinTOP": {"active", "name", "extraips", "bandwidth"},
    "ndioutTOP": {"active", "name", "failovername", "fps"},
    "oscoutDAT": {"active", "protocol", "address", "port", "localaddress", "shared"},
    "oscinDAT": {
        "active", "protocol", "address", "port", "localaddress", "shared", "addscope", "typetag", "splitbundle",
        "splitmessage", "bundletimestamp", "callbacks", "executeloc", "fromop", "clamp", "maxlines", "clear", "bytes",
    },
    "parameterexecuteDAT": {
        "active", "op", "pars", "valuechange", "valueschanged", "onpulse", "expressionchange", "exportchange",
        "enablechange", "modechange", "custom", "builtin",
    },
    "executeDAT": {"active", "start", "create", "exit", "framestart", "frameend", "playstatechange", "devicechange"},
    "textDAT": {"file", "syncfile"},
}  # fmt: skip
#: Parameters of builds before 2023, where they differ.
OPERATORS_2022 = OPERATORS | {
    "baseCOMP": {
        "parentshortcut", "opshortcut", "extension1", "extname1", "promoteextension1", "reinitextensions",
    },
}  # fmt: skip
#: Built-in parameters with a menu of what the system lists, into which a name can be typed too.
LISTS = {("syphonspoutinTOP", "sendername"), ("ndiinTOP", "name")}
STYLES = {"Float", "Int", "Str", "Toggle", "Pulse", "Menu", "File", "Header"}
CUSTOM_NAME = re.compile(r"[A-Z][a-z0-9]*")


class Unsupported(Exception):
    """Use of something that TouchDesigner does not have."""


class tdAttributeError(Unsupported, AttributeError):  # noqa: N801 -- TouchDesigner's name
    """Use of a parameter that an operator lacks."""


class Strict:
    """An object that rejects attributes its class does not list."""

    ALLOWED: frozenset[str] = frozenset()

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in self.ALLOWED and not name.startswith("_"):
            raise Unsupported(f"{type(self).__name__} has no member {name!r} to set")
        object.__setattr__(self, name, value)


class Par(Strict):
    """A parameter, built in (no style) or custom."""

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
        self._expr, self.help, self.default, self.readOnly, self.label = "", "", self._value, False, name
        if not style and (owner.opType, name) in LISTS:
            self._menu = self._labels = []

    name = property(lambda self: self._name)
    style = property(lambda self: self._style)

    @property
    def menuNames(self) -> Any:
        return self._menu

    @menuNames.setter
    def menuNames(self, names: list[str]) -> None:
        self._require_style("Menu")
        if not all(names):
            raise Unsupported(f"{self._name}: a choice without a name is not documented")
        if len(set(names)) != len(names):
            raise Unsupported(f"{self._name} has a choice twice in {names}")
        self._menu = list(names)
        if names and self._value not in names:  # a menu always shows one of its choices
            self.val = names[0]

    @property
    def menuLabels(self) -> Any:
        return self._labels

    @menuLabels.setter
    def menuLabels(self, labels: list[str]) -> None:
        self._require_style("Menu")
        assert self._menu is not None
        if len(labels) != len(self._menu):
            raise Unsupported(f"{self._name}: {len(labels)} labels for {len(self._menu)} choices")
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
            raise Unsupported(f"{self._name} has no choice {value!r}, but {self._menu}")
        elif self._style == "Pulse":
            raise Unsupported(f"{self._name} is a pulse and has no value")
        self._expr = ""  # a value puts the parameter into constant mode
        previous, self._value = self._value, value
        if previous != value and self._style:
            self._owner._changed.append((self, previous))

    @property
    def expr(self) -> str:
        return self._expr

    @expr.setter
    def expr(self, expression: str) -> None:
        self._expr = expression

    def eval(self) -> Any:
        if self._expr:
            return self._owner._evaluate(self._expr)
        return self._value

    def pulse(self) -> None:
        self._require_style("Pulse")
        self._owner._pulsed.append(self)

    def destroy(self) -> None:
        if not self._style:
            raise Unsupported("only custom parameters can be destroyed")
        del self._owner._custom[self._name]

    def _require_style(self, style: str) -> None:
        if self._style != style:
            raise Unsupported(f"{self._name} is not a {style} but {self._style or 'built in'}")

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
        par = self._owner._custom.get(name)
        if par is None and name in self._owner._documented[self._owner.opType]:
            par = self._owner._builtin.setdefault(name, Par(self._owner, name))
        return par

    def __getattr__(self, name: str) -> Par:
        par = self[name]
        if par is None:
            raise tdAttributeError(f"{self._owner.opType} has no parameter {name!r}")
        return par

    def __setattr__(self, name: str, value: Any) -> None:
        getattr(self, name).val = value
