"""OSCQuery: the parameters as a tree that a client can browse (the proposal of Vidvox), made from the table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bridge.osc.subscriptions import Status
from engine.shared.parameter import Parameter, Value
from engine.shared.table import ROOT, TABLE

Node = dict[str, Any]
#: Attributes that may be asked for one by one.
ATTRIBUTES = ("FULL_PATH", "CONTENTS", "TYPE", "ACCESS", "VALUE", "RANGE", "DESCRIPTION", "UNIT", "CLIPMODE")
EXTENSIONS = dict.fromkeys(
    ("ACCESS", "VALUE", "RANGE", "DESCRIPTION", "UNIT", "CLIPMODE", "LISTEN", "PATH_CHANGED"), True
)
READ, WRITE = 1, 2
#: Where the heartbeat's values lie, to read only: name → OSC type.
STATUS = {
    "fps": "f",
    "latency": "f",
    "state": "s",
    "cue": "s",
    "cue/next": "s",
    "version": "s",
    "presets": "s",
    "cues": "s",
}
#: Commands that take one of the names in a list of the heartbeat's.
NAMED = {"/preset": "presets", "/cue/goto": "cues"}


def tree(values: Mapping[str, Value], status: Status) -> Node:
    """The whole tree with its values."""
    root: Node = {"FULL_PATH": "/", "DESCRIPTION": "Phosphene", "ACCESS": 0, "CONTENTS": {}}
    for parameter in TABLE.values():
        _place(root, ROOT + parameter.name, _described(parameter, values))
    for name, kind in STATUS.items():
        value = status.get(name, "" if kind == "s" else 0.0)
        listed = list(value) if isinstance(value, tuple) else [value]
        _place(root, f"{ROOT}/status/{name}", {"TYPE": kind * len(listed), "ACCESS": READ, "VALUE": listed})
    for name, where in NAMED.items():
        names = status.get(where)
        if isinstance(names, tuple):
            _place(root, ROOT + name, {"RANGE": [{"VALS": [n.split(" ")[0] for n in names]}]})
    return root


def found(root: Node, path: str) -> Node | None:
    """The node at a path; None where there is none."""
    node: Node | None = root
    for part in path.strip("/").split("/"):
        if part and node is not None:
            node = node.get("CONTENTS", {}).get(part)
    return node


def host_info(name: str, osc_port: int, http_port: int) -> Node:
    """What ``?HOST_INFO`` answers."""
    return {"NAME": name, "EXTENSIONS": EXTENSIONS, "OSC_PORT": osc_port, "OSC_TRANSPORT": "UDP", "WS_PORT": http_port}


def _place(root: Node, path: str, attributes: Node) -> None:
    node = root
    parts = path.strip("/").split("/")
    for depth in range(len(parts)):
        inside = node.setdefault("CONTENTS", {})
        node = inside.setdefault(parts[depth], {"FULL_PATH": "/" + "/".join(parts[: depth + 1]), "ACCESS": 0})
    node |= attributes


def _described(parameter: Parameter, values: Mapping[str, Value]) -> Node:
    """One parameter's attributes."""
    value = values.get(parameter.name)
    kinds = {"float": "f", "int": "i", "bool": "T" if value else "F", "trigger": "I"}
    node: Node = {
        "TYPE": kinds.get(parameter.kind, "s"),
        "DESCRIPTION": parameter.help,
        "ACCESS": READ | WRITE if parameter.holds else WRITE,
    }
    if parameter.holds:
        node["VALUE"] = [value]
    if parameter.kind in ("float", "int"):
        node |= {"RANGE": [{"MIN": parameter.low, "MAX": parameter.high}], "CLIPMODE": ["both"]}
    elif parameter.kind == "choice":
        node["RANGE"] = [{"VALS": list(parameter.choices)}]
    if parameter.unit:
        node["UNIT"] = [parameter.unit]
    return node
