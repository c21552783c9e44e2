r"""Builds the Phosphene component inside TouchDesigner and saves it as Phosphene.tox. One line in the Textport:

    import sys; sys.path.append(r'C:\phosphene\touchdesigner'); import build; build.tox()

A .tox can only be written by TouchDesigner itself; this script is what Phosphene ships.
"""

import json
import os
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
#: Custom parameters that are the component's own, by page: style, name, label, default, help, and the choices of a menu.
OWN = {
    "Phosphene": (
        ("Toggle", "Active", "Active", True, "Whether the component sends and listens"),
        (
            "Menu",
            "Transport",
            "Transport",
            "local",
            "How pictures travel",
            ("local", "ndi"),
            ("Spout or Syphon", "NDI"),
        ),
        ("Toggle", "Passinput", "Pass Input", True, "Whether the input is passed on while the engine does not answer"),
        ("Pulse", "Start", "Start Engine", None, "Starts Phosphene on this machine, with the names and ports below"),
        ("Pulse", "Stop", "Stop Engine", None, "Ends the Phosphene that Start began"),
        ("Pulse", "Reconnect", "Reconnect", None, "Asks the engine for everything, now; this also happens by itself"),
        ("Pulse", "Sendall", "Send All", None, "Sends every parameter as it is here"),
        ("Pulse", "Openpanel", "Open Panel", None, "The engine's panel in the browser"),
        ("Toggle", "Connected", "Connected", False, "Whether the engine answers"),
        ("Str", "Status", "Status", "", "What the engine is doing"),
        ("Str", "Error", "Error", "", "What is wrong"),
        ("Float", "Fps", "Frames a Second", 0.0, "Frames a second that the engine makes"),
        ("Float", "Latency", "Latency", 0.0, "From texture in to texture out, in milliseconds"),
        ("Str", "Cue", "Cue", "", "The cue that stands"),
        ("Str", "Nextcue", "Next Cue", "", "The cue that Go starts"),
    ),
    "Setup": (
        ("File", "Program", "Program", "", "The phosphene program, where Start does not find it"),
        ("Str", "Arguments", "Arguments", "", "More arguments for `phosphene run`"),
        ("Str", "Host", "Host", "127.0.0.1", "The machine that Phosphene runs on"),
        ("Int", "Port", "OSC Port", 9000, "Phosphene's OSC port"),
        ("Int", "Feedbackport", "Feedback Port", 9002, "The port on which this component listens"),
        ("Int", "Httpport", "Panel Port", 9001, "Phosphene's HTTP port"),
        ("Str", "Sendername", "Sender Name", "phosphene-in", "Name of the texture that is sent to Phosphene"),
        ("Str", "Receivername", "Receiver Name", "phosphene-out", "Name of the texture that comes back"),
        ("Str", "Ndisource", "NDI Source", "", "Full name of the NDI source that comes back; empty: on this machine"),
        ("Str", "Version", "Version", "", "Of this component"),
        ("Str", "Engineversion", "Engine Version", "", "Of the engine that answers"),
    ),
    "Presets": (
        ("Pulse", "Presetnow", "Recall Again", None, "Recalls the preset of the menu once more"),
        ("Pulse", "Cuegotonow", "Go to Cue Again", None, "Starts the cue of the menu once more"),
    ),
}
READ_ONLY = ("Connected", "Status", "Error", "Fps", "Latency", "Cue", "Nextcue", "Version", "Engineversion")
#: Inner operators: name → type, place in the network.
OPERATORS = {
    "in1": ("inTOP", 0, 0),
    "share": ("syphonspoutoutTOP", 200, 100),
    "ndi_out": ("ndioutTOP", 200, -100),
    "shared": ("syphonspoutinTOP", 400, 100),
    "ndi_in": ("ndiinTOP", 400, -100),
    "choose": ("switchTOP", 600, 0),
    "out1": ("outTOP", 800, 0),
    "osc_out": ("oscoutDAT", 0, -300),
    "osc_in": ("oscinDAT", 200, -300),
    "osc_callbacks": ("textDAT", 400, -300),
    "parameters_callbacks": ("parameterexecuteDAT", 0, -500),
    "frame_callbacks": ("executeDAT", 200, -500),
    "PhospheneExt": ("textDAT", 400, -500),
    "parameters": ("textDAT", 600, -500),
}
TEXTS = ("PhospheneExt", "osc_callbacks", "parameters_callbacks", "frame_callbacks")
#: What inner parameters are set to, and what they follow.
VALUES = {
    "osc_in": {"callbacks": "osc_callbacks", "splitbundle": True},
    "parameters_callbacks": {
        "active": True,
        "op": "..",
        "pars": "*",
        "custom": True,
        "builtin": False,
        "valuechange": True,
        "onpulse": True,
    },
    "frame_callbacks": {"framestart": True, "exit": True, "active": True},
}
EXPRESSIONS = {
    "share": {
        "active": "parent().par.Active and parent().par.Transport == 'local'",
        "sendername": "parent().par.Sendername",
    },
    "shared": {"sendername": "parent().par.Receivername"},
    "ndi_out": {"active": "parent().par.Active and parent().par.Transport == 'ndi'", "name": "parent().par.Sendername"},
    "ndi_in": {
        "active": "parent().par.Active and parent().par.Transport == 'ndi'",
        "name": "parent().par.Ndisource.eval() or op('PhospheneExt').module.own_source_name(parent().par.Receivername.eval())",
    },
    "osc_out": {"address": "parent().par.Host", "port": "parent().par.Port"},
    "osc_in": {"port": "parent().par.Feedbackport", "active": "parent().par.Active"},
}
WIRES = (
    ("in1", "share"),
    ("in1", "ndi_out"),
    ("shared", "choose"),
    ("ndi_in", "choose"),
    ("in1", "choose"),
    ("choose", "out1"),
)


def tox(path=None):
    """Builds the component in the open project and saves it; returns where, beside this script where ``path`` does not say."""
    import td

    component = build(td.op("/project1") or td.op("/"))
    saved = component.save(path or os.path.join(HERE, "Phosphene.tox"))
    print(f"Phosphene: saved {saved}")
    return saved


def build(place):
    """The component, made anew in the component ``place``; returns it."""
    older = place.op("Phosphene")
    if older is not None:
        older.destroy()
    with open(os.path.join(HERE, "parameters.json"), encoding="utf-8") as file:
        about = file.read()
    component = place.create("baseCOMP", "Phosphene")
    component.comment = "Live diffusion beside TouchDesigner"
    component.color = (0.55, 0.2, 0.6)
    _pages(component, json.loads(about))
    _network(component, about)
    component.par.parentshortcut = "Phosphene"
    component.par.ext0object = "op('./PhospheneExt').module.PhospheneExt(me)"
    component.par.ext0promote = True
    component.initializeExtensions(0)
    return component


def _pages(component, about):
    for title, rows in OWN.items():
        page = component.appendCustomPage(title)
        for style, name, label, default, text, *menu in rows:
            par = getattr(page, f"append{style}")(name, label=label)[0]
            if menu:
                par.menuNames, par.menuLabels = list(menu[0]), list(menu[1])
            _default(par, default, text)
            par.readOnly = name in READ_ONLY
    component.par.Version.val = about["version"]
    component.par.Program.val = _program()
    for title, rows in about["pages"].items():
        page = component.appendCustomPage(title)
        for row in rows:
            _parameter(page, row)


def _parameter(page, row):
    """One parameter of the table, with its range, its menu and its help."""
    par = getattr(page, f"append{row['style']}")(row["name"], label=row["label"])[0]
    if "menu" in row:
        par.menuNames = row["menu"]
        par.menuLabels = [choice.capitalize() for choice in row["menu"]]
    if "min" in row:
        par.min, par.max, par.clampMin, par.clampMax = row["min"], row["max"], True, True
        par.normMin, par.normMax = row["min"], row["slider"]
    _default(par, row.get("default"), row["help"])


def _default(par, value, text):
    par.help = text
    if value is not None:
        par.default = value
        par.val = value


def _network(component, about):
    for name, (kind, x, y) in OPERATORS.items():
        made = component.create(kind, name)
        made.nodeX, made.nodeY = x, y
    component.op("parameters").text = about
    for name in TEXTS:
        with open(os.path.join(HERE, "dats", f"{name}.py"), encoding="utf-8") as file:
            component.op(name).text = file.read()
    for name, settings in VALUES.items():
        for par, value in settings.items():
            component.op(name).par[par].val = value
    for name, settings in EXPRESSIONS.items():
        for par, expression in settings.items():
            component.op(name).par[par].expr = expression
    for start, end in WIRES:
        target = component.op(end)
        place = sum(1 for _, other in WIRES[: WIRES.index((start, end))] if other == end)
        component.op(start).outputConnectors[0].connect(target.inputConnectors[place])


def _program():
    """The program of the checkout that this script lies in, where it was set up there; else empty."""
    inside = ("Scripts", "phosphene.exe") if sys.platform == "win32" else ("bin", "phosphene")
    path = os.path.join(os.path.dirname(HERE), ".venv", *inside)
    return path if os.path.exists(path) else ""
