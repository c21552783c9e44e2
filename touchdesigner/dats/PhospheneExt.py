"""Extension of the Phosphene component: its parameters and the engine's in step over OSC, and the engine's process.

Runs inside TouchDesigner, which calls it through the DATs beside it: Tick every frame, Send and Pulse when somebody touches a parameter,
Hear for every OSC message. Nothing in it waits.
"""

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import webbrowser

#: Seconds: between two tries to reach the engine, until a subscription is renewed, without a word until it counts as gone.
RETRY, RENEW, GONE = 2.0, 600.0, 3.5
#: Seconds after a touch in which an older value of the engine's does not move the parameter back.
QUIET = 0.3
#: Seconds between two looks at connection and process.
LOOK = 0.25


class PhospheneExt:
    """What the component does. ``ownerComp`` is the component; capitalised methods are promoted to it."""

    def __init__(self, ownerComp):
        self.ownerComp = ownerComp
        about = json.loads(ownerComp.op("parameters").text)
        self.version, self.root = about["version"], about["root"]
        self.rows = {row["name"]: row for rows in about["pages"].values() for row in rows}
        self.titles = dict(about["presets"])
        self.byAddress = {row["address"]: name for name, row in self.rows.items()}
        self.recalls = {}
        par = ownerComp.par
        self.known = {name: _plain(par[name].eval()) for name, row in self.rows.items() if "default" in row}
        self.heard, self.touched = {}, {}
        self.lastWord = self.lastTry = -1e9
        self.nextLook = 0.0
        self.process, self.stopping = None, False
        self.errors = {}
        self.logPath = os.path.join(tempfile.gettempdir(), "phosphene-touchdesigner.log")
        self._presets([name for name, _ in about["presets"]])

    def onDestroyTD(self):
        """The component is deleted or made anew: its engine goes with it."""
        self.Stop()

    # ---- what the DATs beside it call

    def Tick(self):
        """Once a frame: shows what was heard, and now and then looks at connection and process."""
        now = time.monotonic()
        for name in [n for n in self.heard if now - self.touched.get(n, -1e9) > QUIET]:
            self._show(name, self.heard.pop(name))
        if now < self.nextLook:
            return
        self.nextLook = now + LOOK
        par = self.ownerComp.par
        connected = now - self.lastWord < GONE
        due = RENEW if connected else RETRY
        if par.Active.eval() and now - self.lastTry > due:
            self.Reconnect()
        if not connected:
            self.errors.pop("version", None)
        self._put("Connected", connected)
        if not connected:
            self._put("Status", "no answer" if par.Active.eval() else "off")
        passing = par.Passinput.eval() and not connected
        self.ownerComp.op("choose").par.index = 2 if passing else 1 if par.Transport.eval() == "ndi" else 0
        self._watch()
        self._put("Error", "; ".join(self.errors.values()))

    def Send(self, par):
        """A parameter was changed here: the engine is told, unless it was the engine who said so."""
        row = self.rows.get(par.name)
        if row is None or row["style"] == "Pulse":
            return
        value = _plain(par.eval())
        if row["command"]:
            if value != "":
                self._osc(row["address"], value)
            return
        if _same(self.known.get(par.name), value):
            return
        self.known[par.name], self.touched[par.name] = value, time.monotonic()
        self._osc(row["address"], value)

    def Pulse(self, par):
        """A button was pressed."""
        row = self.rows.get(par.name)
        if row is not None:
            self._osc(row["address"], 1)
        elif par.name in self.recalls:
            self._osc(f"{self.root}/preset", self.recalls[par.name])
        elif par.name in ("Presetnow", "Cuegotonow"):
            self.Send(self.ownerComp.par[par.name[:-3]])
        elif par.name in ("Start", "Stop", "Reconnect", "Sendall", "Openpanel"):
            getattr(self, par.name)()

    def Hear(self, address, args):
        """An OSC message of the engine's."""
        self.lastWord = time.monotonic()
        if address.startswith(f"{self.root}/status/"):
            self._status(address[len(self.root) + len("/status/") :], list(args))
        elif address in self.byAddress and args:
            self.heard[self.byAddress[address]] = args[0]

    # ---- what its buttons do

    def Reconnect(self):
        """Asks the engine to tell this component everything, now and when it changes."""
        self.lastTry = time.monotonic()
        self._osc(f"{self.root}/subscribe", int(self.ownerComp.par.Feedbackport.eval()))

    def Sendall(self):
        """Sends every value as it is here: for an engine that was started afresh."""
        for name, row in self.rows.items():
            if "default" in row:
                self.known.pop(name, None)
                self.Send(self.ownerComp.par[name])

    def Openpanel(self):
        """The engine's panel in the browser."""
        par = self.ownerComp.par
        webbrowser.open(f"http://{par.Host.eval()}:{int(par.Httpport.eval())}/")

    def Start(self):
        """Starts the engine with this component's names and ports, unless it runs."""
        if self.process is not None and self.process.poll() is None:
            return
        self.errors.pop("process", None)
        self.stopping = False
        try:
            with open(self.logPath, "wb") as log:
                self.process = subprocess.Popen(
                    self.Command(), stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=_environment(),
                    creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
                )  # fmt: skip
        except OSError as error:
            self.errors["process"] = f"Phosphene cannot be started: {error}"
            return
        self.lastTry = -1e9

    def Stop(self):
        """Ends the engine that this component started; another's goes on."""
        self.stopping = True
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()

    def Command(self):
        """The command that Start runs, as a list."""
        par = self.ownerComp.par
        scheme = "ndi" if par.Transport.eval() == "ndi" else "syphon" if sys.platform == "darwin" else "spout"
        command = [par.Program.eval() or "phosphene", "run", "--source", f"{scheme}:{par.Sendername.eval()}"]
        command += ["--sink", f"{scheme}:{par.Receivername.eval()}"]
        command += ["--osc-port", str(int(par.Port.eval())), "--http-port", str(int(par.Httpport.eval()))]
        return command + str(par.Arguments.eval()).split()

    # ---- inside

    def _osc(self, address, value):
        if self.ownerComp.par.Active.eval():
            self.ownerComp.op("osc_out").sendOSC(address, [value], useNonStandardTypes=False)

    def _show(self, name, value):
        """A value of the engine's in the parameter, without sending it back."""
        par, row = self.ownerComp.par[name], self.rows[name]
        value = bool(value) if row["style"] == "Toggle" else value
        self.known[name] = _plain(value)
        if not _same(_plain(par.eval()), _plain(value)):
            par.val = value

    def _put(self, name, value):
        par = self.ownerComp.par[name]
        if par.eval() != value:
            par.val = value

    def _status(self, name, args):
        value = args[0] if args else ""
        shown = {
            "fps": "Fps",
            "latency": "Latency",
            "state": "Status",
            "cue": "Cue",
            "cue/next": "Nextcue",
            "version": "Engineversion",
        }
        if name in shown:
            self._put(shown[name], value)
        if name == "version" and str(value).split(".")[:2] != self.version.split(".")[:2]:
            self.errors["version"] = (
                f"this component is of Phosphene {self.version}, the engine is {value}: build it again"
            )
        elif name == "version":
            self.errors.pop("version", None)
        elif name == "presets":
            self._presets(args)
        elif name == "cues":
            self._menu("Cuegoto", [cue.split(" ")[0] for cue in args], args)

    def _presets(self, names):
        """The presets as a menu, and as a button each."""
        self._menu("Preset", names, [self.titles.get(name, name) for name in names])
        page = next((page for page in self.ownerComp.customPages if page.name == "Presets"), None)
        if page is None:
            return
        wanted = {}
        for name in names:
            plain = "Recall" + "".join(letter for letter in name.lower() if letter.isascii() and letter.isalnum())
            while plain in wanted:
                plain += "x"
            wanted[plain] = name
        for plain in [one for one in self.recalls if one not in wanted]:
            self.ownerComp.par[plain].destroy()
        for plain, name in wanted.items():
            if self.ownerComp.par[plain] is None:
                page.appendPulse(plain, label=self.titles.get(name, name))
        self.recalls = wanted

    def _menu(self, name, names, labels):
        """A menu's choices; the first is none, so that a menu that loses its choice commands nothing."""
        par = self.ownerComp.par[name]
        if list(par.menuNames or ()) != ["", *names]:
            par.menuNames, par.menuLabels = ["", *names], ["-", *labels]

    def _watch(self):
        """Says why the engine's process is gone, where it should not be."""
        if self.process is None or self.process.poll() is None:
            return
        code, self.process = self.process.returncode, None
        if not self.stopping:
            self.errors["process"] = f"Phosphene ended ({code}): {_last_line(self.logPath)}"


def own_source_name(name):
    """How NDI calls a source of that name on this machine."""
    return f"{socket.gethostname().upper()} ({name})"


def _plain(value):
    return int(value) if isinstance(value, bool) else value


def _same(one, other):
    """Whether two values are one, up to what a float32 on the way may lose."""
    if isinstance(one, (int, float)) and isinstance(other, (int, float)):
        return abs(one - other) <= 1e-6 * max(1.0, abs(one), abs(other))
    return one == other


def _environment():
    """This process's environment without what TouchDesigner's own Python put there."""
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONHOME", "PYTHONPATH")}


def _last_line(path):
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            lines = [line.strip() for line in file.read()[-4000:].splitlines() if line.strip()]
    except OSError:
        return "no log"
    return lines[-1] if lines else "no log"
