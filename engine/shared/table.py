"""The one table of everything that can be controlled, and the immutable snapshots that cross to the engine.

Light on purpose: no torch. OSC dispatch, validation, the command line, presets, the preview page and the
README's reference all read this table; nothing lists the parameters a second time.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from types import MappingProxyType

from engine.shared.parameter import InvalidValue, Parameter, abbreviate

ROOT = "/phosphene"
#: What a file of the user's own effects and its parameters may be called.
HOOK_NAME = re.compile(r"[a-z][a-z0-9_]{0,31}")


_LAST_SEED = 2**31 - 1
_ADAPTERS = [
    *[Parameter(f"/lora/{i}", "string", "", f"LoRA {i}: a file, or a name in loras/; empty: none") for i in range(1, 5)],
    *[Parameter(f"/lora/{i}/weight", "float", 1.0, f"Weight of LoRA {i}", low=-2.0, high=2.0) for i in range(1, 5)],
    *[
        row
        for i in range(1, 4)
        for row in (
            Parameter(f"/control/{i}", "string", "", f"ControlNet {i}: a folder or file, or a name in controlnets/; empty: none"),
            Parameter(f"/control/{i}/on", "bool", True, f"Whether ControlNet {i} counts"),
            Parameter(f"/control/{i}/weight", "float", 1.0, f"Weight of ControlNet {i}", high=2.0),
            Parameter(f"/control/{i}/start", "float", 0.0, f"Share of the steps from which ControlNet {i} counts"),
            Parameter(f"/control/{i}/end", "float", 1.0, f"Share of the steps until which ControlNet {i} counts"),
            Parameter(
                f"/control/{i}/from", "choice", "canny", f"What ControlNet {i} sees: a map of the input, the input, or the second source",
                choices=("canny", "softedge", "luminance", "tile", "depth", "input", "source"),
            ),
        )
    ],
    Parameter("/control/depth", "string", "", "Depth model for the depth map: a transformers folder"),
    Parameter("/reference", "string", "", "Picture that steers the look (IP-Adapter): a file, or source for the second source"),
    Parameter("/reference/model", "string", "", "IP-Adapter: a file, or a name in adapters/"),
    Parameter("/reference/encoder", "string", "", "Image encoder of the IP-Adapter: a folder, or a name in adapters/"),
    Parameter("/reference/on", "bool", True, "Whether the reference picture counts"),
    Parameter("/reference/weight", "float", 0.6, "Weight of the reference picture", high=2.0),
    Parameter("/reference/capture", "trigger", False, "Takes the present input as the reference picture", where="bridge"),
]  # fmt: skip
_TIME = [
    Parameter("/feedback", "float", 0.0, "Share of the last output in the input"),
    Parameter("/feedback/zoom", "float", 1.0, "How the last output grows each frame", low=0.5, high=2.0),
    Parameter(
        "/feedback/rotate",
        "float",
        0.0,
        "How the last output turns each frame, clockwise",
        low=-180.0,
        high=180.0,
        unit="degrees",
    ),
    Parameter(
        "/feedback/x",
        "float",
        0.0,
        "How far the last output moves to the right each frame, in widths",
        low=-1.0,
        high=1.0,
    ),
    Parameter(
        "/feedback/y", "float", 0.0, "How far the last output moves down each frame, in heights", low=-1.0, high=1.0
    ),
    Parameter(
        "/feedback/hue",
        "float",
        0.0,
        "How the hue of the last output drifts each frame",
        low=-180.0,
        high=180.0,
        unit="degrees",
    ),
    Parameter(
        "/feedback/edge",
        "choice",
        "mirror",
        "What shows beyond the last output",
        choices=("mirror", "wrap", "hold", "black"),
    ),
    Parameter(
        "/smoothing", "float", 0.0, "How much of the last latent stays in the next, where the input stands still"
    ),
    Parameter("/consistency", "float", 0.0, "How much the frames before are attended to"),
    Parameter("/consistency/motion", "float", 0.0, "How much of the last output is carried along the input's motion"),
    Parameter("/consistency/frames", "int", 1, "How many frames before are remembered", low=1, high=4, unit="frames"),
    Parameter(
        "/consistency/merge",
        "choice",
        "recent",
        "What is remembered: the last frames, or their mean",
        choices=("recent", "mean"),
    ),
    Parameter(
        "/seed/travel", "float", 0.0, "Seeds that the noise walks through in a unit of time; 0 stands still", high=8.0
    ),
    Parameter("/seed/travel/unit", "choice", "beats", "Unit of the walk", choices=("beats", "seconds")),
    Parameter(
        "/tempo",
        "float",
        120.0,
        "Tempo of everything that counts in beats",
        low=20.0,
        high=300.0,
        unit="bpm",
        in_look=False,
    ),
    Parameter("/tempo/tap", "trigger", False, "A beat is now; several in a row set the tempo", where="bridge"),
    Parameter("/tempo/sync", "trigger", False, "The first beat of a bar is now", where="bridge"),
]
_SHOW = [
    Parameter("/preset", "command", "", "Recalls a preset, by name or number", where="bridge"),
    Parameter("/preset/save", "command", "", "Keeps the present look as a preset of that name", where="bridge"),
    Parameter(
        "/preset/fade",
        "float",
        -1.0,
        "Length of a recall's fade; below 0 the preset's own",
        low=-1.0,
        high=600.0,
        where="bridge",
    ),
    Parameter("/preset/unit", "choice", "seconds", "Unit of that length", choices=("seconds", "beats"), where="bridge"),
    Parameter("/cue/list", "string", "", "The cue list that is played, by name; empty: none", where="bridge"),
    Parameter("/cue/go", "trigger", False, "Starts the next cue, or lets a paused one go on", where="bridge"),
    Parameter("/cue/back", "trigger", False, "Starts the cue before", where="bridge"),
    Parameter("/cue/goto", "command", "", "Starts the cue of that number", where="bridge"),
    Parameter(
        "/cue/pause", "bool", False, "Holds the cue where it is: its fade, its delay and what follows", where="bridge"
    ),
    Parameter(
        "/cue/release",
        "trigger",
        False,
        "Lets go of the cue list: what was before its first cue comes back",
        where="bridge",
    ),
    Parameter(
        "/learn",
        "command",
        "",
        "Binds the next message of a desk to the parameter of that name; off ends it",
        where="bridge",
    ),
    Parameter("/panic", "trigger", False, "Stops everything and shows the safe look at once", where="bridge"),
    Parameter("/panic/preset", "string", "", "The safe look, a preset; empty: all defaults", where="bridge"),
]
#: Parameters that name a file or a folder.
FILES = frozenset(
    [*(f"/lora/{i}" for i in range(1, 5)), *(f"/control/{i}" for i in range(1, 4)), "/control/depth", "/reference", "/reference/model",
     "/reference/encoder", "/fallback/still", "/model", "/autoencoder"]
)  # fmt: skip
#: How many modulators there are.
MODULATORS = 4
_MODULATION = [
    *[
        row
        for i in range(1, MODULATORS + 1)
        for row in (
            Parameter(f"/mod/{i}/on", "bool", False, f"Whether modulator {i} works", where="bridge"),
            Parameter(f"/mod/{i}/to", "string", "", f"The continuous parameter that modulator {i} moves", where="bridge"),
            Parameter(
                f"/mod/{i}/shape", "choice", "sine", f"How modulator {i} moves: a wave, a walk, a stroke on the beat, or a level",
                choices=("sine", "triangle", "saw", "square", "walk", "beat", "level", "bass", "mid", "high"), where="bridge",
            ),
            Parameter(f"/mod/{i}/depth", "float", 0.25, f"How far modulator {i} moves it, of its range", low=-1.0, where="bridge"),
            Parameter(f"/mod/{i}/rate", "float", 4.0, f"Cycle of modulator {i}", low=0.125, high=64.0, unit="beats", where="bridge"),
            Parameter(f"/mod/{i}/phase", "float", 0.0, f"Where in its cycle modulator {i} starts", where="bridge"),
        )
    ],
    *[
        Parameter(f"/audio/{name}", "float", 0.0, f"{what}, from an analyser, for modulators", where="bridge")
        for name, what in (("level", "Loudness"), ("bass", "Low sounds"), ("mid", "Middle sounds"), ("high", "High sounds"))
    ],
]  # fmt: skip
_PICTURE = [
    *[
        row
        for side, what in (("input", "input"), ("output", "output"))
        for row in (
            Parameter(f"/{side}/gain", "float", 1.0, f"Brightness of the {what}", high=4.0),
            Parameter(f"/{side}/contrast", "float", 1.0, f"Contrast of the {what}", high=4.0),
            Parameter(f"/{side}/saturation", "float", 1.0, f"Saturation of the {what}", high=4.0),
            Parameter(f"/{side}/hue", "float", 0.0, f"Hue of the {what}, turned", low=-180.0, high=180.0, unit="degrees"),
        )
    ],
    Parameter("/input/mirror", "choice", "none", "Shows one half of the input on both sides", choices=("none", "left", "top", "both")),
    Parameter("/input/kaleidoscope", "int", 0, "Folds the input into so many wedges", high=24, unit="wedges"),
    Parameter("/mask", "choice", "none", "Diffuses where the input's alpha or the second source says", choices=("none", "alpha", "source")),
    Parameter("/mask/invert", "bool", False, "Diffuses where the mask says not to"),
    Parameter("/mask/feather", "float", 0.0, "Softness of the mask's edge, in heights", high=0.5),
    Parameter("/mix", "float", 1.0, "From the input (0) to the diffused picture (1)"),
]  # fmt: skip
_ROWS = [
    Parameter("/prompt", "string", "neon tunnel, magenta and cyan", "What to paint"),
    *[Parameter(f"/prompt/{i}", "string", "", f"Prompt {i}, blended in by its weight; empty: unused") for i in (2, 3, 4)],
    *[Parameter(f"/prompt/{i}/weight", "float", 1.0, f"Weight of prompt {i} in the blend") for i in (1, 2, 3, 4)],
    Parameter("/prompt/blend", "choice", "linear", "How prompts are blended", choices=("linear", "spherical")),
    Parameter("/negative", "string", "", "What to avoid (guidance modes full and onetime)"),
    Parameter("/seed", "int", 1, "Seed of the noise", high=_LAST_SEED),
    Parameter("/seed/2", "int", 2, "Second seed", high=_LAST_SEED),
    Parameter("/seed/mix", "float", 0.0, "From seed 1 (0) to seed 2 (1), spherically"),
    Parameter("/seed/random", "trigger", False, "Draws a new first seed", where="bridge"),
    Parameter("/mode", "choice", "image", "image transforms the input, text paints from noise", choices=("image", "text")),
    Parameter("/strength", "float", 0.5, "How far from the input: 0 keeps it, 1 ignores it"),
    Parameter("/steps", "int", 2, "Denoising steps a frame", low=1, high=8),
    Parameter("/schedule", "schedule", "", "Explicit training timesteps, high to low; empty: from strength and steps"),
    Parameter("/eta", "float", 1.0, "Fresh noise between steps: 1 renews all (LCM, Turbo), 0 none (Lightning, flows), between as TCD"),
    Parameter("/buffer", "int", 1, "Frames taken together each tick", low=1, high=4, unit="frames", in_look=False),
    Parameter("/guidance", "float", 1.0, "Guidance scale; 1 is none", high=20.0),
    Parameter(
        "/guidance/mode", "choice", "self", "Classifier-free guidance: residual (self, onetime), full or none",
        choices=("none", "full", "self", "onetime"),
    ),
    Parameter("/guidance/embedded", "float", 0.0, "Scale for a model that has guidance built in; 0 is the one it was made for", high=20.0),
    Parameter("/guidance/delta", "float", 1.0, "Strength of the residual noise", high=2.0),
    *_ADAPTERS,
    *_TIME,
    *_PICTURE,
    Parameter("/similarity", "bool", False, "Skips frames that hardly changed", in_look=False),
    Parameter("/similarity/threshold", "float", 0.98, "Similarity from which frames may be skipped; 1 never skips", in_look=False),
    Parameter("/similarity/max_skip", "int", 10, "Most frames skipped in a row", high=1000, unit="frames", in_look=False),
    Parameter(
        "/similarity/measure", "choice", "local", "local sees small motion; cosine is the paper's",
        choices=("local", "cosine"), in_look=False,
    ),
    *_SHOW,
    *_MODULATION,
    Parameter("/freeze", "bool", False, "Holds the output picture", where="bridge"),
    Parameter("/bypass", "bool", False, "Sends the input through untouched", where="bridge"),
    Parameter("/blackout", "bool", False, "Sends black", where="bridge"),
    Parameter("/master", "float", 1.0, "Brightness of the output", where="bridge"),
    Parameter(
        "/fallback", "choice", "hold", "What is shown while the engine is away: the last picture, the input, black, or a still",
        choices=("hold", "input", "black", "still"), where="bridge",
    ),
    Parameter(
        "/fallback/source", "choice", "hold", "What is shown while no input comes: the last picture, black, or the still",
        choices=("hold", "black", "still"), where="bridge",
    ),
    Parameter("/fallback/still", "string", "", "The still: a picture file", where="bridge"),
    Parameter("/fit", "choice", "crop", "How an input of another shape is fitted", choices=("crop", "fit", "stretch"), where="bridge"),
    Parameter("/output/rate", "int", 0, "Steady rate of the output; 0 sends frames as they come", high=120, unit="fps", where="bridge"),
    Parameter(
        "/output/between", "choice", "flow", "What is shown between two frames at a steady rate: motion, a mix, or the newest",
        choices=("flow", "blend", "none"), where="bridge",
    ),
    Parameter("/output/sharpen", "float", 0.0, "Sharpness given back to an output that is made larger", high=2.0, where="bridge"),
    Parameter("/output/size", "size", "", "Size of the output; empty: the working size", low=16, high=4096, where="bridge"),
    Parameter("/model", "string", "pocket", "pocket, a diffusers folder, a single file or a hub name", live=False),
    Parameter("/autoencoder", "string", "", "Another autoencoder: tiny, a folder or a hub name; empty: the model's own", live=False),
    Parameter("/model/fade", "float", 1.0, "How long another model or size takes to fade in", high=30.0, unit="seconds", in_look=False),
    Parameter("/size", "size", "256x256", "Working size of the diffusion", low=64, high=2048, live=False),
    Parameter(
        "/dtype", "choice", "auto", "Precision of the model",
        choices=("auto", "float32", "bfloat16", "float16"), live=False,
    ),
    Parameter("/reset", "trigger", False, "Sets every live parameter back to its default", where="bridge"),
]  # fmt: skip

#: Name → parameter, in the order of the reference.
_TABLE = {row.name: row for row in _ROWS}
TABLE: Mapping[str, Parameter] = MappingProxyType(_TABLE)


def declare(rows: Iterable[Parameter]) -> None:
    """Puts the parameters of the user's effects, ``/hook/…``, in the place of those declared before. The bridge alone calls it."""
    fresh = {row.name: row for row in rows}
    for name in [name for name in _TABLE if name.startswith("/hook/") and name not in fresh]:
        del _TABLE[name]
    _TABLE.update(fresh)


def canonical(name: str) -> str:
    """A parameter's own name from what a user wrote: the leading slash and the root are optional, ``/prompt/1`` is ``/prompt``."""
    name = "/" + name.strip().strip("/")
    if name.startswith(ROOT + "/"):
        name = name.removeprefix(ROOT)
    return {"/prompt/1": "/prompt", "/seed/1": "/seed"}.get(name, name)


def lookup(name: str) -> Parameter:
    """The parameter called ``name``; BadValue where there is none."""
    found = TABLE.get(canonical(name))
    if found is None:
        raise InvalidValue(f"no parameter is called {abbreviate(name)}")
    return found
