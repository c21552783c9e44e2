r"""Builds the Phosphene component inside TouchDesigner and saves it as Phosphene.tox. Run this line in the Textport:

    import runpy; runpy.run_path(r"C:\phosphene\touchdesigner\build.py")["tox"]()

It reads the file anew each time, and no package named ``build`` can be taken for it. Only TouchDesigner itself can
write a .tox file, so Phosphene ships this script instead.

It was run in a simulator with TouchDesigner's names, never in TouchDesigner.
"""

import json
import os
import re
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
#: First year of TouchDesigner's builds whose COMPs have the parameters that hold an extension, such as ext0object.
FIRST_BUILD_YEAR = 2023
#: Controls of the component itself, by page: style, name, label, default, help, and a menu's names and labels.
#: The other pages come from parameters.json.
COMPONENT_PARAMETERS = {
    "Phosphene": (
        ("Toggle", "Active", "Active", True, "Exchange pictures and OSC with the engine"),
        ("Menu", "Transport", "Transport", "local", "Texture transport",
         ("local", "ndi"), ("Spout or Syphon", "NDI")),
        ("Toggle", "Passinput", "Pass Input", True, "Pass the input through while the engine does not answer"),
        ("Pulse", "Start", "Start Engine", None, "Start Phosphene on this machine with the names and ports of Setup"),
        ("Pulse", "Stop", "Stop Engine", None, "Stop the engine that Start Engine started"),
        ("Pulse", "Reconnect", "Reconnect", None, "Request all values from the engine now (automatic otherwise)"),
        ("Pulse", "Sendall", "Send All", None, "Send every parameter to the engine"),
        ("Pulse", "Openpanel", "Open Panel", None, "Open the engine's panel in the browser"),
        ("Toggle", "Connected", "Connected", False, "Connection to the engine"),
        ("Str", "Status", "Status", "", "State of the engine"),
        ("Str", "Error", "Error", "", "Current problems"),
        ("Float", "Fps", "Frames a Second", 0.0, "Frame rate of the engine"),
        ("Float", "Latency", "Latency", 0.0, "Latency from texture in to texture out, in milliseconds"),
        ("Str", "Cue", "Cue", "", "Current cue"),
        ("Str", "Nextcue", "Next Cue", "", "Cue that Go starts"),
    ),
    "Setup": (
        ("File", "Program", "Program", "", "Path of the phosphene program (empty = search PATH)"),
        ("Str", "Arguments", "Arguments", "",
         'Additional arguments for `phosphene run`; "quotes" around what holds blanks'),
        ("Str", "Host", "Host", "127.0.0.1", "Address of the machine that runs Phosphene"),
        ("Int", "Port", "OSC Port", 9000, "Phosphene's OSC port"),
        ("Int", "Feedbackport", "Feedback Port", 9002, "OSC port that this component listens on"),
        ("Int", "Httpport", "Panel Port", 9001, "Phosphene's HTTP port"),
        ("Str", "Sendername", "Sender Name", "phosphene-in", "Name of the texture sent to Phosphene"),
        ("Str", "Receivername", "Receiver Name", "phosphene-out", "Name of the texture received from Phosphene"),
        ("Str", "Ndisource", "NDI Source", "",
         "Full name of the NDI source to receive (empty = Receiver Name on this machine)"),
        ("Str", "Version", "Version", "", "Version of this component"),
        ("Str", "Engineversion", "Engine Version", "", "Version of the connected engine"),
    ),
    "Presets": (
        ("Pulse", "Presetnow", "Recall Again", None, "Recall the preset of the menu again"),
        ("Pulse", "Cuegotonow", "Go to Cue Again", None, "Start the cue of the menu again"),
    ),
}  # fmt: skip
READ_ONLY = ("Connected", "Status", "Error", "Fps", "Latency", "Cue", "Nextcue", "Version", "Engineversion")
#: Operators of the network: name → type, x, y.
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
    "texture_names": ("textDAT", 600, -300),
    "arguments": ("textDAT", 800, -500),
}
#: DATs whose text is the file of the same name in dats/.
TEXT_DATS = (
    "PhospheneExt",
    "osc_callbacks",
    "parameters_callbacks",
    "frame_callbacks",
    "texture_names",
    "arguments",
)
#: Operator → constant values of its parameters.
VALUES = {
    "shared": {"usespoutactivesender": False},
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
#: Operator → expressions of its parameters.
EXPRESSIONS = {
    "share": {
        "active": "parent().par.Active and parent().par.Transport == 'local'",
        "sendername": "parent().par.Sendername",
    },
    "shared": {"sendername": "parent().par.Receivername"},
    "ndi_out": {"active": "parent().par.Active and parent().par.Transport == 'ndi'", "name": "parent().par.Sendername"},
    "ndi_in": {
        "active": "parent().par.Active and parent().par.Transport == 'ndi'",
        "name": "parent().par.Ndisource.eval()"
        " or op('texture_names').module.local_source_name(parent().par.Receivername.eval())",
    },
    "osc_out": {"address": "parent().par.Host", "port": "parent().par.Port"},
    "osc_in": {"port": "parent().par.Feedbackport", "active": "parent().par.Active"},
}
#: Wires: from, to. The inputs of an operator are filled in this order.
WIRES = (
    ("in1", "share"),
    ("in1", "ndi_out"),
    ("shared", "choose"),
    ("ndi_in", "choose"),
    ("in1", "choose"),
    ("choose", "out1"),
)


def tox(path=None):
    """Build the component in the open project, save it and return its path (default: Phosphene.tox in this folder).

    Returns None, and prints why, in a TouchDesigner that is too old.
    """
    import td

    problem = unsupported_build(str(td.app.build), str(td.app.version))
    if problem:
        print(f"Phosphene: {problem}. Nothing was built.")
        return None
    path = path or os.path.join(HERE, "Phosphene.tox")
    if os.path.lexists(path) and not path.lower().endswith(".tox"):
        raise ValueError(f"{path} exists and is no .tox file; choose another name")
    component = build(td.op("/project1") or td.op("/"))
    saved = component.save(path)
    print(f"Phosphene: saved {saved}")
    return saved


def unsupported_build(build_number, version=""):
    """Return why this TouchDesigner cannot hold the component, such as build 2022.35320; an empty string if it can.

    A number without a year counts as new enough.
    """
    years = [int(year) for year in re.findall(r"\b(20\d\d)\b", f"{build_number} {version}")]
    if not years or years[0] >= FIRST_BUILD_YEAR:
        return ""
    return f"needs TouchDesigner {FIRST_BUILD_YEAR} or newer, this is {build_number}"


def build(parent):
    """Build the component inside the COMP ``parent``, replacing an earlier one, and return it."""
    previous = parent.op("Phosphene")
    if previous is not None:
        previous.destroy()
    with open(os.path.join(HERE, "parameters.json"), encoding="utf-8") as file:
        parameters_json = file.read()
    component = parent.create("baseCOMP", "Phosphene")
    component.comment = "Live diffusion beside TouchDesigner"
    component.color = (0.55, 0.2, 0.6)
    _add_pages(component, json.loads(parameters_json))
    _add_network(component, parameters_json)
    component.par.parentshortcut = "Phosphene"
    component.par.ext0object = "op('./PhospheneExt').module.PhospheneExt(me)"
    component.par.ext0promote = True
    component.initializeExtensions(0)
    return component


def _add_pages(component, description):
    for title, rows in COMPONENT_PARAMETERS.items():
        page = component.appendCustomPage(title)
        for style, name, label, default, help_text, *menu in rows:
            par = getattr(page, f"append{style}")(name, label=label)[0]
            if menu:
                par.menuNames, par.menuLabels = list(menu[0]), list(menu[1])
            _set_default(par, default, help_text)
            par.readOnly = name in READ_ONLY
    component.par.Version.val = description["version"]
    component.par.Program.val = _program_path()
    for title, rows in description["pages"].items():
        page = component.appendCustomPage(title)
        for row in rows:
            _add_parameter(page, row)


def _add_parameter(page, row):
    """Append one of Phosphene's parameters, with its range, menu and help."""
    par = getattr(page, f"append{row['style']}")(row["name"], label=row["label"])[0]
    if "menu" in row:
        par.menuNames = row["menu"]
        par.menuLabels = [choice.capitalize() for choice in row["menu"]]
    if "min" in row:
        par.min, par.max, par.clampMin, par.clampMax = row["min"], row["max"], True, True
        par.normMin, par.normMax = row["min"], row["slider"]
    _set_default(par, row.get("default"), row["help"])


def _set_default(par, value, help_text):
    par.help = help_text
    if value is not None:
        par.default = value
        par.val = value


def _add_network(component, parameters_json):
    for name, (operator_type, x, y) in OPERATORS.items():
        operator = component.create(operator_type, name)
        operator.nodeX, operator.nodeY = x, y
    component.op("parameters").text = parameters_json
    for name in TEXT_DATS:
        with open(os.path.join(HERE, "dats", f"{name}.py"), encoding="utf-8") as file:
            component.op(name).text = file.read()
    missing = []
    for table, member in ((VALUES, "val"), (EXPRESSIONS, "expr")):
        for name, settings in table.items():
            missing += _set_members(component.op(name), member, settings)
    if missing:
        print(f"Phosphene: this TouchDesigner lacks the parameters {', '.join(missing)}; please open an issue")
    for start, end in WIRES:
        target = component.op(end)
        index = sum(1 for _, other in WIRES[: WIRES.index((start, end))] if other == end)
        component.op(start).outputConnectors[0].connect(target.inputConnectors[index])


def _set_members(operator, member, settings):
    """Set ``val`` or ``expr`` of several parameters and return the names of those that the operator lacks."""
    missing = [par for par in settings if operator.par[par] is None]
    for par, value in settings.items():
        if par not in missing:
            setattr(operator.par[par], member, value)
    return [f"{operator.name}.{par}" for par in missing]


def _program_path():
    """Return the program in the virtual environment of the checkout that contains this script, or an empty string."""
    inside = ("Scripts", "phosphene.exe") if sys.platform == "win32" else ("bin", "phosphene")
    path = os.path.join(os.path.dirname(HERE), ".venv", *inside)
    return path if os.path.exists(path) else ""
