"""OSCQuery: the parameters as a tree that clients can browse (Vidvox's proposal), built from the table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bridge.osc.subscriptions import Status
from engine.shared.parameter import Parameter, Value
from engine.shared.table import ROOT, TABLE

Node = dict[str, Any]
#: Attributes that a client may query one by one.
ATTRIBUTES = ("FULL_PATH", "CONTENTS", "TYPE", "ACCESS", "VALUE", "RANGE", "DESCRIPTION", "UNIT", "CLIPMODE")
EXTENSIONS = dict.fromkeys(
    ("ACCESS", "VALUE", "RANGE", "DESCRIPTION", "UNIT", "CLIPMODE", "LISTEN", "PATH_CHANGED"), True
)
READ, WRITE = 1, 2
#: The heartbeat's values, read-only: name → OSC type.
STATUS_TYPES = {
    "fps": "f",
    "latency": "f",
    "state": "s",
    "cue": "s",
    "cue/next": "s",
    "version": "s",
    "presets": "s",
    "cues": "s",
}
#: Commands whose argument is a name from a list in the heartbeat: command → list.
NAME_LISTS = {"/preset": "presets", "/cue/goto": "cues"}


def build_tree(values: Mapping[str, Value], status: Status) -> Node:
    """Return the tree of all parameters and status values, with their present values."""
    root: Node = {"FULL_PATH": "/", "DESCRIPTION": "Phosphene", "ACCESS": 0, "CONTENTS": {}}
    for parameter in TABLE.values():
        _insert(root, ROOT + parameter.name, _describe(parameter, values))
    for name, osc_type in STATUS_TYPES.items():
        value = status.get(name, "" if osc_type == "s" else 0.0)
        items = list(value) if isinstance(value, tuple) else [value]
        _insert(root, f"{ROOT}/status/{name}", {"TYPE": osc_type * len(items), "ACCESS": READ, "VALUE": items})
    for command, list_name in NAME_LISTS.items():
        names = status.get(list_name)
        if isinstance(names, tuple):
            _insert(root, ROOT + command, {"RANGE": [{"VALS": [name.split(" ")[0] for name in names]}]})
    return root


def find_node(root: Node, path: str) -> Node | None:
    """Return the node at ``path``, or None."""
    node: Node | None = root
    for part in path.strip("/").split("/"):
        if part and node is not None:
            node = node.get("CONTENTS", {}).get(part)
    return node


def host_info(name: str, osc_port: int, http_port: int) -> Node:
    """Return the answer to ``?HOST_INFO``."""
    return {"NAME": name, "EXTENSIONS": EXTENSIONS, "OSC_PORT": osc_port, "OSC_TRANSPORT": "UDP", "WS_PORT": http_port}


def _insert(root: Node, path: str, attributes: Node) -> None:
    node = root
    parts = path.strip("/").split("/")
    for depth in range(len(parts)):
        children = node.setdefault("CONTENTS", {})
        node = children.setdefault(parts[depth], {"FULL_PATH": "/" + "/".join(parts[: depth + 1]), "ACCESS": 0})
    node |= attributes


def _describe(parameter: Parameter, values: Mapping[str, Value]) -> Node:
    """Return the attributes of one parameter."""
    value = values.get(parameter.name)
    types = {"float": "f", "int": "i", "bool": "T" if value else "F", "trigger": "I"}
    node: Node = {
        "TYPE": types.get(parameter.kind, "s"),
        "DESCRIPTION": parameter.help,
        "ACCESS": READ | WRITE if parameter.has_value else WRITE,
    }
    if parameter.has_value:
        node["VALUE"] = [value]
    if parameter.kind in ("float", "int"):
        node |= {"RANGE": [{"MIN": parameter.low, "MAX": parameter.high}], "CLIPMODE": ["both"]}
    elif parameter.kind == "choice":
        node["RANGE"] = [{"VALS": list(parameter.choices)}]
    if parameter.unit:
        node["UNIT"] = [parameter.unit]
    return node
