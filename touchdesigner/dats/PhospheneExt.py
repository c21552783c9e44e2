"""Extension of the Phosphene component: syncs its parameters with the engine over OSC and runs the engine process.

TouchDesigner calls it through the callback DATs: Tick every frame, Send and Pulse when a user changes a parameter,
Receive for every OSC message. No method blocks.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
import webbrowser

#: Time between two attempts to subscribe to an engine that does not answer.
RETRY_SECONDS = 2.0
#: Time until a working subscription is renewed.
RENEW_SECONDS = 600.0
#: Time without a message after which the engine counts as disconnected.
TIMEOUT_SECONDS = 3.5
#: Time after a local change during which values from the engine do not move the parameter back.
HOLD_SECONDS = 0.3
#: Time between two checks of connection and process.
CHECK_SECONDS = 0.25
#: Time between two looks at the lists of texture senders: TouchDesigner asks the system for them.
LIST_SECONDS = 1.0
#: First choice of the menus that send a command. Choosing it sends nothing.
NO_CHOICE = "none"


class PhospheneExt:
    """Behaviour of the component ``ownerComp``; TouchDesigner promotes the capitalised methods to it."""

    def __init__(self, ownerComp):
        self.ownerComp = ownerComp
        description = json.loads(ownerComp.op("parameters").text)
        self.version, self.root = description["version"], description["root"]
        self.rows = {row["name"]: row for rows in description["pages"].values() for row in rows}
        self.titles = dict(description["presets"])
        self.nameByAddress = {row["address"]: name for name, row in self.rows.items()}
        self.presetByButton = {}
        par = ownerComp.par
        self.synced = {name: _plain(par[name].eval()) for name, row in self.rows.items() if "default" in row}
        self.received, self.changedAt = {}, {}
        self.lastMessage = self.lastAttempt = -1e9
        self.nextCheck = self.nextList = 0.0
        self.process, self.stopping = None, False
        self.errors = {}
        self.logPath = os.path.join(tempfile.gettempdir(), "phosphene-touchdesigner.log")
        self._updatePresets([name for name, _ in description["presets"]])

    def onDestroyTD(self):
        """Stop the engine when the component is deleted or rebuilt."""
        self.Stop()

    # ---- called by the callback DATs

    def Tick(self):
        """Show received values, and check connection and process every CHECK_SECONDS. Called every frame."""
        now = time.perf_counter()
        for name in [n for n in self.received if now - self.changedAt.get(n, -1e9) > HOLD_SECONDS]:
            self._show(name, self.received.pop(name))
        if now < self.nextCheck:
            return
        self.nextCheck = now + CHECK_SECONDS
        par = self.ownerComp.par
        connected = now - self.lastMessage < TIMEOUT_SECONDS
        interval = RENEW_SECONDS if connected else RETRY_SECONDS
        if par.Active.eval() and now - self.lastAttempt > interval:
            self.Reconnect()
        if not connected:
            self.errors.pop("version", None)
        self._set("Connected", connected)
        if not connected:
            self._set("Status", "no answer" if par.Active.eval() else "off")
        passing = par.Passinput.eval() and not connected
        self.ownerComp.op("choose").par.index = 2 if passing else 1 if par.Transport.eval() == "ndi" else 0
        if par.Active.eval() and now >= self.nextList:
            self.nextList = now + LIST_SECONDS
            self._findTexture()
        self._checkProcess()
        self._set("Error", "; ".join(self.errors.values()))

    def Send(self, par):
        """Send a changed parameter to the engine, unless the change came from the engine."""
        row = self.rows.get(par.name)
        if row is None or row["style"] == "Pulse":
            return
        value = _plain(par.eval())
        if row["command"]:
            isChoice = row["style"] != "Menu" or value != par.menuNames[0]
            if value != "" and isChoice:
                self._sendOSC(row["address"], value)
            return
        if _equal(self.synced.get(par.name), value):
            return
        self.synced[par.name], self.changedAt[par.name] = value, time.perf_counter()
        self._sendOSC(row["address"], value)

    def Pulse(self, par):
        """Run the action of a pulse parameter."""
        row = self.rows.get(par.name)
        if row is not None:
            self._sendOSC(row["address"], 1)
        elif par.name in self.presetByButton:
            self._sendOSC(f"{self.root}/preset", self.presetByButton[par.name])
        elif par.name in ("Presetnow", "Cuegotonow"):
            self.Send(self.ownerComp.par[par.name[:-3]])
        elif par.name in ("Start", "Stop", "Reconnect", "Sendall", "Openpanel"):
            getattr(self, par.name)()

    def Receive(self, address, args):
        """Handle an OSC message from the engine."""
        self.lastMessage = time.perf_counter()
        if address.startswith(f"{self.root}/status/"):
            self._updateStatus(address[len(self.root) + len("/status/") :], list(args))
        elif address in self.nameByAddress and args:
            self.received[self.nameByAddress[address]] = args[0]

    # ---- actions of the pulse parameters

    def Reconnect(self):
        """Subscribe to the engine: it sends all values now, and every change afterwards."""
        self.lastAttempt = time.perf_counter()
        self._sendOSC(f"{self.root}/subscribe", int(self.ownerComp.par.Feedbackport.eval()))

    def Sendall(self):
        """Send every value of the component, such as to an engine that has just started."""
        for name, row in self.rows.items():
            if "default" in row:
                self.synced.pop(name, None)
                self.Send(self.ownerComp.par[name])

    def Openpanel(self):
        """Open the engine's panel in the browser."""
        par = self.ownerComp.par
        webbrowser.open(f"http://{par.Host.eval()}:{int(par.Httpport.eval())}/")

    def Start(self):
        """Start the engine with this component's names and ports, unless it is running."""
        if self.process is not None and self.process.poll() is None:
            return
        self.errors.pop("process", None)
        self.stopping = False
        try:
            with open(self.logPath, "wb") as log:
                self.process = subprocess.Popen(
                    self.Command(),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=_environment(),
                    creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
                )
        except (OSError, ValueError) as error:
            self.errors["process"] = f"Phosphene cannot be started: {error}"
            return
        self.lastAttempt = -1e9

    def Stop(self):
        """Stop the engine that this component started. An engine started elsewhere keeps running."""
        self.stopping = True
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()

    def Command(self):
        """Return the command line of Start as a list. Raises ValueError for arguments that cannot be split."""
        par = self.ownerComp.par
        scheme = "ndi" if par.Transport.eval() == "ndi" else "syphon" if sys.platform == "darwin" else "spout"
        program = os.path.expanduser(str(par.Program.eval()).strip(' "')) or "phosphene"  # Windows copies paths quoted
        command = [program, "run", "--source", f"{scheme}:{par.Sendername.eval()}"]
        command += ["--sink", f"{scheme}:{par.Receivername.eval()}"]
        command += ["--osc-port", str(int(par.Port.eval())), "--http-port", str(int(par.Httpport.eval()))]
        return command + self.ownerComp.op("arguments").module.split_arguments(str(par.Arguments.eval()))

    # ---- internals

    def _sendOSC(self, address, value):
        if self.ownerComp.par.Active.eval():
            self.ownerComp.op("osc_out").sendOSC(address, [value], useNonStandardTypes=False)

    def _findTexture(self):
        """Select the engine's texture in the TOP that receives it, under the name by which TouchDesigner lists it."""
        par, names = self.ownerComp.par, self.ownerComp.op("texture_names").module
        name = par.Receivername.eval()
        if par.Transport.eval() == "ndi":
            selected = self.ownerComp.op("ndi_in").par.name
            match = par.Ndisource.eval() or names.match_ndi_source(selected.menuNames or (), name, selected.eval())
        else:
            selected = self.ownerComp.op("shared").par.sendername
            match = names.match_sender(selected.menuNames or (), name, selected.eval())
        if selected.eval() != match:
            selected.val = match

    def _show(self, name, value):
        """Set a parameter to the engine's value without sending it back."""
        par, row = self.ownerComp.par[name], self.rows[name]
        value = bool(value) if row["style"] == "Toggle" else value
        self.synced[name] = _plain(value)
        if not _equal(_plain(par.eval()), _plain(value)):
            par.val = value

    def _set(self, name, value):
        par = self.ownerComp.par[name]
        if par.eval() != value:
            par.val = value

    def _updateStatus(self, name, args):
        value = args[0] if args else ""
        displays = {
            "fps": "Fps",
            "latency": "Latency",
            "state": "Status",
            "cue": "Cue",
            "cue/next": "Nextcue",
            "version": "Engineversion",
        }
        if name in displays:
            self._set(displays[name], value)
        if name == "version":
            self._checkVersion(str(value))
        elif name == "presets":
            self._updatePresets(args)
        elif name == "cues":
            self._setMenu("Cuegoto", [cue.split(" ")[0] for cue in args], args)

    def _checkVersion(self, version):
        """Report an engine of another release. An engine that runs from a checkout has no version."""
        self.errors.pop("version", None)
        if version and version.split(".")[:2] != self.version.split(".")[:2]:
            self.errors["version"] = (
                f"this component is from Phosphene {self.version}, the engine is {version}: rebuild the component"
            )

    def _updatePresets(self, names):
        """List the presets in the menu, and give each a button on the page Presets."""
        self._setMenu("Preset", names, [self.titles.get(name, name) for name in names])
        page = next((page for page in self.ownerComp.customPages if page.name == "Presets"), None)
        if page is None:
            return
        presetByButton = {}
        for name in names:
            button = "Recall" + "".join(letter for letter in name.lower() if letter.isascii() and letter.isalnum())
            while button in presetByButton:
                button += "x"
            presetByButton[button] = name
        for button in [old for old in self.presetByButton if old not in presetByButton]:
            self.ownerComp.par[button].destroy()
        for button, name in presetByButton.items():
            if self.ownerComp.par[button] is None:
                page.appendPulse(button, label=self.titles.get(name, name))
        self.presetByButton = presetByButton

    def _setMenu(self, name, names, labels):
        """Set a menu's choices. The first stands for none, so that a menu that loses its choice sends no command."""
        par = self.ownerComp.par[name]
        first = NO_CHOICE
        while first in names:
            first += "_"
        if list(par.menuNames or ()) != [first, *names]:
            par.menuNames, par.menuLabels = [first, *names], ["-", *labels]

    def _checkProcess(self):
        """Report an engine process that ended without Stop."""
        if self.process is None or self.process.poll() is None:
            return
        code, self.process = self.process.returncode, None
        if not self.stopping:
            self.errors["process"] = f"Phosphene ended ({code}): {_last_line(self.logPath)}"


def _plain(value):
    return int(value) if isinstance(value, bool) else value


def _equal(a, b):
    """Return whether two values are equal, numbers within float32 precision."""
    if isinstance(a, (int, float)) and isinstance(b, (int, float)):
        return abs(a - b) <= 1e-6 * max(1.0, abs(a), abs(b))
    return a == b


def _environment():
    """Return this process's environment without the variables of TouchDesigner's Python, and with UTF-8 output."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONHOME", "PYTHONPATH")}
    return {**environment, "PYTHONUTF8": "1"}


def _last_line(path):
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            lines = [line.strip() for line in file.read()[-4000:].splitlines() if line.strip()]
    except OSError:
        return "no log"
    return lines[-1] if lines else "no log"
