"""The table of all parameters.

OSC dispatch, validation, the command line, presets, the panel and the generated reference all read this table. Nothing
lists the parameters a second time.
"""

from __future__ import annotations

import re
from collections.abc import ItemsView, Iterable, Iterator, KeysView, Mapping, ValuesView

from engine.shared.parameter import InvalidValue, Parameter, abbreviate

ROOT = "/phosphene"
#: Names of hook files and of their parameters.
HOOK_NAME = re.compile(r"[a-z][a-z0-9_]{0,31}")
_LAST_SEED = 2**31 - 1
#: Number of modulators.
MODULATORS = 4
#: Parameters that name a file or a folder.
FILES = frozenset(
    [*(f"/lora/{i}" for i in range(1, 5)), *(f"/control/{i}" for i in range(1, 4)), "/control/depth", "/reference",
     "/reference/model", "/reference/encoder", "/fallback/still", "/model", "/autoencoder"]
)  # fmt: skip

_PROMPT = [
    Parameter("/prompt", "string", "neon tunnel, magenta and cyan", "Text prompt: what to paint"),
    *[Parameter(f"/prompt/{i}", "string", "", f"Prompt {i}, blended in by its weight (empty = unused)")
      for i in (2, 3, 4)],
    *[Parameter(f"/prompt/{i}/weight", "float", 1.0, f"Weight of prompt {i} in the blend") for i in (1, 2, 3, 4)],
    Parameter("/prompt/blend", "choice", "linear", "Interpolation between the prompts' embeddings",
              choices=("linear", "spherical")),
    Parameter("/negative", "string", "", "Negative prompt: what to avoid (guidance modes full and onetime)"),
    Parameter("/seed", "int", 1, "Seed of the noise", high=_LAST_SEED),
    Parameter("/seed/2", "int", 2, "Second seed", high=_LAST_SEED),
    Parameter("/seed/mix", "float", 0.0, "Spherical mix of the noise, from seed 1 (0) to seed 2 (1)"),
    Parameter("/seed/random", "trigger", False, "Draw a new first seed at random", where="bridge"),
]  # fmt: skip
_DIFFUSION = [
    Parameter("/mode", "choice", "image", "Transform the input (image) or paint from noise (text)",
              choices=("image", "text")),
    Parameter("/strength", "float", 0.5, "Denoising strength: 0 keeps the input, 1 ignores it"),
    Parameter("/steps", "int", 2, "Denoising steps per frame", low=1, high=50),
    Parameter("/schedule", "schedule", "",
              "Explicit training timesteps, high to low (empty = derived from strength and steps)"),
    Parameter("/eta", "float", 1.0,
              "Fresh noise between steps: 1 for LCM and Turbo, 0 for Lightning and flow models, in between for TCD"),
    Parameter("/buffer", "int", 1, "Frames processed together in each tick", low=1, high=4, unit="frames",
              in_look=False),
    Parameter("/guidance", "float", 1.0, "Guidance scale (1 = off)", high=20.0),
    Parameter("/guidance/mode", "choice", "self", "Classifier-free guidance: none, full, or residual (self, onetime)",
              choices=("none", "full", "self", "onetime")),
    Parameter("/guidance/embedded", "float", 0.0,
              "Guidance scale fed to a guidance-distilled model (0 = the model's default)", high=20.0),
    Parameter("/guidance/delta", "float", 1.0, "Strength of the residual noise", high=2.0),
]  # fmt: skip
_REGIONS = [
    Parameter("/regions", "choice", "off",
              "Compute parts of the picture: where the model's focus is, where the input changed, or both",
              choices=("off", "focus", "change", "both")),
    Parameter("/regions/share", "float", 0.25,
              "Largest fraction of the picture computed in each step (rounded to 1, 1/2, 1/4, 1/8 or 1/16)",
              low=0.0625),
    Parameter("/regions/metric", "choice", "std", "Measure of the focus: deviation or norm of the velocity, or random",
              choices=("std", "l2", "random")),
    Parameter("/regions/starvation", "float", 0.1, "Growth of a region's priority with each step it is skipped",
              high=2.0),
    Parameter("/regions/high", "float", 0.3, "Fraction of the skipped regions that have the highest measure"),
    Parameter("/regions/start", "int", 4, "Full steps before the focus applies", low=1, high=50, unit="steps"),
    Parameter("/regions/reset", "steps", "12 22", "Later full steps of the focus, counted from 0"),
    Parameter("/regions/ramp", "float", 0.0,
              "Fraction of the steps over which the focus narrows from everything to the share (0 = at once)"),
    Parameter("/regions/threshold", "float", 0.05, "Change of a region that counts, in deviations of the latents"),
    Parameter("/regions/refresh", "int", 32, "Frames within which unchanged regions are computed again (0 = never)",
              high=300, unit="frames"),
    Parameter("/regions/text", "bool", True, "Compute the prompt's tokens at every step of the focus"),
]  # fmt: skip
_ADAPTERS = [
    *[Parameter(f"/lora/{i}", "string", "", f"LoRA {i}: a file, or a name in loras/ (empty = none)")
      for i in range(1, 5)],
    *[Parameter(f"/lora/{i}/weight", "float", 1.0, f"Weight of LoRA {i}", low=-2.0, high=2.0) for i in range(1, 5)],
    *[
        row
        for i in range(1, 4)
        for row in (
            Parameter(f"/control/{i}", "string", "",
                      f"ControlNet {i}: a folder or file, or a name in controlnets/ (empty = none)"),
            Parameter(f"/control/{i}/on", "bool", True, f"Enable ControlNet {i}"),
            Parameter(f"/control/{i}/weight", "float", 1.0, f"Weight of ControlNet {i}", high=2.0),
            Parameter(f"/control/{i}/start", "float", 0.0, f"Fraction of the steps at which ControlNet {i} starts"),
            Parameter(f"/control/{i}/end", "float", 1.0, f"Fraction of the steps at which ControlNet {i} ends"),
            Parameter(f"/control/{i}/from", "choice", "canny",
                      f"Control picture of ControlNet {i}: a map of the input, the input itself, or the second source",
                      choices=("canny", "softedge", "luminance", "tile", "depth", "input", "source")),
        )
    ],
    Parameter("/control/depth", "string", "", "Depth model for depth maps: a transformers folder"),
    Parameter("/reference", "string", "",
              "Reference picture for the IP-Adapter: a file, or 'source' for the second source"),
    Parameter("/reference/model", "string", "", "IP-Adapter: a file, or a name in adapters/"),
    Parameter("/reference/encoder", "string", "", "Image encoder of the IP-Adapter: a folder, or a name in adapters/"),
    Parameter("/reference/on", "bool", True, "Enable the reference picture"),
    Parameter("/reference/weight", "float", 0.6, "Weight of the reference picture", high=2.0),
    Parameter("/reference/capture", "trigger", False, "Use the current input as the reference picture",
              where="bridge"),
]  # fmt: skip
_TIME = [
    Parameter("/feedback", "float", 0.0, "Fraction of the last output mixed into the input"),
    Parameter("/feedback/zoom", "float", 1.0, "Zoom of the fed-back picture per frame", low=0.5, high=2.0),
    Parameter("/feedback/rotate", "float", 0.0, "Rotation of the fed-back picture per frame, clockwise",
              low=-180.0, high=180.0, unit="degrees"),
    Parameter("/feedback/x", "float", 0.0, "Shift of the fed-back picture to the right per frame, in frame widths",
              low=-1.0),
    Parameter("/feedback/y", "float", 0.0, "Shift of the fed-back picture downwards per frame, in frame heights",
              low=-1.0),
    Parameter("/feedback/hue", "float", 0.0, "Hue shift of the fed-back picture per frame",
              low=-180.0, high=180.0, unit="degrees"),
    Parameter("/feedback/edge", "choice", "mirror", "Fill outside the edges of the fed-back picture",
              choices=("mirror", "wrap", "hold", "black")),
    Parameter("/smoothing", "float", 0.0, "Fraction of the last latent mixed into the next where the input is still"),
    Parameter("/consistency", "float", 0.0, "Amount of attention to previous frames"),
    Parameter("/consistency/motion", "float", 0.0, "Fraction of the last output carried along the input's motion"),
    Parameter("/consistency/frames", "int", 1, "Number of previous frames to attend to", low=1, high=4, unit="frames"),
    Parameter("/consistency/merge", "choice", "recent", "Attend to the most recent frames, or to their mean",
              choices=("recent", "mean")),
    Parameter("/seed/travel", "float", 0.0, "Seed-walk speed, in seeds per beat or second (0 = off)", high=8.0),
    Parameter("/seed/travel/unit", "choice", "beats", "Time unit of the seed walk", choices=("beats", "seconds")),
    Parameter("/tempo", "float", 120.0, "Tempo of everything measured in beats", low=20.0, high=300.0, unit="bpm",
              in_look=False),
    Parameter("/tempo/tap", "trigger", False, "Tap a beat; several taps in a row set the tempo", where="bridge"),
    Parameter("/tempo/sync", "trigger", False, "Start a bar now", where="bridge"),
]  # fmt: skip
_PICTURE = [
    *[
        row
        for side in ("input", "output")
        for row in (
            Parameter(f"/{side}/gain", "float", 1.0, f"Brightness of the {side}", high=4.0),
            Parameter(f"/{side}/contrast", "float", 1.0, f"Contrast of the {side}", high=4.0),
            Parameter(f"/{side}/saturation", "float", 1.0, f"Saturation of the {side}", high=4.0),
            Parameter(f"/{side}/hue", "float", 0.0, f"Hue rotation of the {side}",
                      low=-180.0, high=180.0, unit="degrees"),
        )
    ],
    Parameter("/input/mirror", "choice", "none", "Mirror one half of the input onto the other",
              choices=("none", "left", "top", "both")),
    Parameter("/input/kaleidoscope", "int", 0, "Kaleidoscope wedges of the input (0 = off)", high=24, unit="wedges"),
    Parameter("/mask", "choice", "none", "Mask of the diffusion: the input's alpha, or the second source",
              choices=("none", "alpha", "source")),
    Parameter("/mask/invert", "bool", False, "Invert the mask"),
    Parameter("/mask/feather", "float", 0.0, "Softness of the mask's edge, in frame heights", high=0.5),
    Parameter("/mix", "float", 1.0, "Mix of the input (0) and the diffused picture (1)"),
]  # fmt: skip
_SIMILARITY = [
    Parameter("/similarity", "bool", False, "Skip frames that hardly change", in_look=False),
    Parameter("/similarity/threshold", "float", 0.98, "Similarity above which frames may be skipped (1 = never)",
              in_look=False),
    Parameter("/similarity/max_skip", "int", 10, "Maximum number of frames skipped in a row", high=1000,
              unit="frames", in_look=False),
    Parameter("/similarity/measure", "choice", "local",
              "Similarity measure: local detects small motion, cosine is the StreamDiffusion paper's",
              choices=("local", "cosine"), in_look=False),
]  # fmt: skip
_SHOW = [
    Parameter("/preset", "command", "", "Recall a preset by name or number", where="bridge"),
    Parameter("/preset/save", "command", "", "Save the current look as a preset of this name", where="bridge"),
    Parameter("/preset/fade", "float", -1.0, "Crossfade length of a recall (below 0 = as the preset says)",
              low=-1.0, high=600.0, where="bridge"),
    Parameter("/preset/unit", "choice", "seconds", "Unit of the recall's crossfade length",
              choices=("seconds", "beats"), where="bridge"),
    Parameter("/cue/list", "string", "", "Cue list to play, by name (empty = none)", where="bridge"),
    Parameter("/cue/go", "trigger", False, "Start the next cue, or resume a paused one", where="bridge"),
    Parameter("/cue/back", "trigger", False, "Start the previous cue", where="bridge"),
    Parameter("/cue/goto", "command", "", "Start the cue of this number", where="bridge"),
    Parameter("/cue/pause", "bool", False, "Pause the cue: its fade, its delay and its follow-on", where="bridge"),
    Parameter("/cue/release", "trigger", False,
              "Release the cue list and restore the look from before its first cue", where="bridge"),
    Parameter("/learn", "command", "",
              "Map the next message from a desk or controller to the parameter of this name (off = cancel)",
              where="bridge"),
    Parameter("/panic", "trigger", False, "Stop everything and cut to the safe look", where="bridge"),
    Parameter("/panic/preset", "string", "", "Preset of the safe look (empty = all defaults)", where="bridge"),
]  # fmt: skip
_MODULATION = [
    *[
        row
        for i in range(1, MODULATORS + 1)
        for row in (
            Parameter(f"/mod/{i}/on", "bool", False, f"Enable modulator {i}", where="bridge"),
            Parameter(f"/mod/{i}/to", "string", "", f"Continuous parameter moved by modulator {i}", where="bridge"),
            Parameter(f"/mod/{i}/shape", "choice", "sine",
                      f"Shape of modulator {i}: a waveform, a random walk, a pulse on the beat, or an audio level",
                      choices=("sine", "triangle", "saw", "square", "walk", "beat", "level", "bass", "mid", "high"),
                      where="bridge"),
            Parameter(f"/mod/{i}/depth", "float", 0.25, f"Depth of modulator {i}, as a fraction of the range",
                      low=-1.0, where="bridge"),
            Parameter(f"/mod/{i}/rate", "float", 4.0, f"Cycle length of modulator {i}",
                      low=0.125, high=64.0, unit="beats", where="bridge"),
            Parameter(f"/mod/{i}/phase", "float", 0.0, f"Phase of modulator {i}, as a fraction of its cycle",
                      where="bridge"),
        )
    ],
    *[
        Parameter(f"/audio/{name}", "float", 0.0, f"{label} from an audio analyser, for modulators", where="bridge")
        for name, label in (("level", "Loudness"), ("bass", "Bass level"), ("mid", "Mid level"), ("high", "High level"))
    ],
]  # fmt: skip
_OUTPUT = [
    Parameter("/freeze", "bool", False, "Hold the output picture", where="bridge"),
    Parameter("/bypass", "bool", False, "Pass the input through unprocessed", where="bridge"),
    Parameter("/blackout", "bool", False, "Send black", where="bridge"),
    Parameter("/master", "float", 1.0, "Brightness of the output", where="bridge"),
    Parameter("/fallback", "choice", "hold",
              "Picture shown while the engine is away: the last picture, the input, black, or the still",
              choices=("hold", "input", "black", "still"), where="bridge"),
    Parameter("/fallback/source", "choice", "hold",
              "Picture shown while no input arrives: the last picture, black, or the still",
              choices=("hold", "black", "still"), where="bridge"),
    Parameter("/fallback/still", "string", "", "Picture file of the fallback still", where="bridge"),
    Parameter("/fit", "choice", "crop", "Fit of an input with another aspect ratio",
              choices=("crop", "fit", "stretch"), where="bridge"),
    Parameter("/output/rate", "int", 0, "Constant frame rate of the output (0 = send frames as they come)",
              high=120, unit="fps", where="bridge"),
    Parameter("/output/between", "choice", "flow",
              "In-between frames at a constant rate: motion interpolation, a blend, or none",
              choices=("flow", "blend", "none"), where="bridge"),
    Parameter("/output/sharpen", "float", 0.0, "Sharpening of an enlarged output", high=2.0, where="bridge"),
    Parameter("/output/size", "size", "", "Size of the output (empty = working size)", low=16, high=4096,
              where="bridge"),
]  # fmt: skip
_MODEL = [
    Parameter("/model", "string", "pocket",
              "Model: pocket, pocket-dit, a diffusers folder, a single file or a hub name", live=False),
    Parameter("/autoencoder", "string", "",
              "Replacement autoencoder: tiny, a folder or a hub name (empty = the model's own)", live=False),
    Parameter("/model/fade", "float", 1.0, "Crossfade length to another model or size", high=30.0, unit="seconds",
              in_look=False),
    Parameter("/size", "size", "256x256", "Working size of the diffusion", low=64, high=2048, live=False),
    Parameter("/dtype", "choice", "auto", "Floating-point precision of the model",
              choices=("auto", "float32", "bfloat16", "float16"), live=False),
    Parameter("/reset", "trigger", False, "Reset every live parameter to its default", where="bridge"),
]  # fmt: skip
_ROWS = [
    *_PROMPT, *_DIFFUSION, *_REGIONS, *_ADAPTERS, *_TIME, *_PICTURE, *_SIMILARITY, *_SHOW, *_MODULATION, *_OUTPUT,
    *_MODEL,
]  # fmt: skip


class ParameterTable(Mapping[str, Parameter]):
    """Read-only mapping from name to parameter, in the order of the reference.

    ``version`` grows with every change: key a cache of anything computed from the table on it. A change replaces the
    rows as a whole, so other threads may iterate meanwhile.
    """

    def __init__(self, rows: Iterable[Parameter]) -> None:
        self._rows = {row.name: row for row in rows}
        self.version = 0

    def __getitem__(self, name: str) -> Parameter:
        return self._rows[name]

    def __contains__(self, name: object) -> bool:
        return name in self._rows

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def keys(self) -> KeysView[str]:
        """Return the names."""
        return self._rows.keys()

    def values(self) -> ValuesView[Parameter]:
        """Return the parameters."""
        return self._rows.values()

    def items(self) -> ItemsView[str, Parameter]:
        """Return pairs of name and parameter."""
        return self._rows.items()

    def replace_hooks(self, rows: Iterable[Parameter]) -> None:
        """Replace all ``/hook/…`` parameters by ``rows``."""
        built_in = {name: row for name, row in self._rows.items() if not name.startswith("/hook/")}
        self._rows = built_in | {row.name: row for row in rows}
        self.version += 1  # after the rows: a cache keyed on the new version never holds the rows before


TABLE = ParameterTable(_ROWS)
#: Parameters whose change needs a reload: the model and how it is run.
RELOAD_PARAMETERS = tuple(row.name for row in _ROWS if not row.live)


def declare(rows: Iterable[Parameter]) -> None:
    """Replace the parameters of the user's effects, ``/hook/…``. Only the bridge calls it."""
    TABLE.replace_hooks(rows)


def canonical(name: str) -> str:
    """Return a parameter's name in the table: slash and root are optional, ``/prompt/1`` is an alias of ``/prompt``."""
    name = "/" + name.strip().strip("/")
    if name.startswith(ROOT + "/"):
        name = name.removeprefix(ROOT)
    return {"/prompt/1": "/prompt", "/seed/1": "/seed"}.get(name, name)


def lookup(name: str) -> Parameter:
    """Return the parameter called ``name``. Raises InvalidValue if there is none."""
    parameter = TABLE.get(canonical(name))
    if parameter is None:
        raise InvalidValue(f"unknown parameter {abbreviate(name)}")
    return parameter
