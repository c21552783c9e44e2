"""Typed, frozen views of a snapshot: the hot path reads attributes, never parameter names.

A parameter of the engine appears in exactly one field of one view (``tests/engine/shared/test_settings.py``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from engine.shared.parameter import Value, parse_size
from engine.shared.region_settings import RegionSettings
from engine.shared.table import MODULATORS
from engine.shared.view import each, parameter


@dataclass(frozen=True)
class GuidanceSettings:
    """Classifier-free guidance: γ, the mode, δ of the residual forms, and the scale of guidance-distilled models."""

    scale: float = parameter("/guidance")
    mode: str = parameter("/guidance/mode")
    delta: float = parameter("/guidance/delta")
    embedded: float = parameter("/guidance/embedded")

    @property
    def active(self) -> bool:
        """Return whether guidance changes the output."""
        return self.scale != 1.0 and self.mode != "none"


@dataclass(frozen=True)
class NoiseWalkSettings:
    """The walk of the noise from seed to seed, in seeds per beat or per second."""

    rate: float = parameter("/seed/travel")
    unit: str = parameter("/seed/travel/unit")
    tempo: float = parameter("/tempo")
    seed: int = parameter("/seed")

    @property
    def seeds_per_second(self) -> float:
        """Return the rate in seeds per second."""
        return self.rate * self.tempo / 60.0 if self.unit == "beats" else self.rate


@dataclass(frozen=True)
class MemorySettings:
    """Attention to the keys and values of earlier frames."""

    strength: float = parameter("/consistency")
    length: int = parameter("/consistency/frames")
    merge: str = parameter("/consistency/merge")


@dataclass(frozen=True)
class DiffusionSettings:
    """How frames are noised and denoised."""

    guidance: GuidanceSettings
    noise_walk: NoiseWalkSettings
    memory: MemorySettings
    regions: RegionSettings
    mode: str = parameter("/mode")
    strength: float = parameter("/strength")
    steps: int = parameter("/steps")
    schedule: str = parameter("/schedule")
    eta: float = parameter("/eta")
    buffer: int = parameter("/buffer")
    smoothing: float = parameter("/smoothing")

    @property
    def text_mode(self) -> bool:
        """Return whether frames are painted from noise alone."""
        return self.mode == "text"


@dataclass(frozen=True)
class SimilaritySettings:
    """The filter that skips frames which hardly changed."""

    enabled: bool = parameter("/similarity")
    threshold: float = parameter("/similarity/threshold")
    max_skip: int = parameter("/similarity/max_skip")
    measure: str = parameter("/similarity/measure")


@dataclass(frozen=True)
class InputGradeSettings:
    """Colour of the input; hue in degrees."""

    gain: float = parameter("/input/gain")
    contrast: float = parameter("/input/contrast")
    saturation: float = parameter("/input/saturation")
    hue: float = parameter("/input/hue")


@dataclass(frozen=True)
class OutputGradeSettings:
    """Colour of the output; hue in degrees."""

    gain: float = parameter("/output/gain")
    contrast: float = parameter("/output/contrast")
    saturation: float = parameter("/output/saturation")
    hue: float = parameter("/output/hue")


@dataclass(frozen=True)
class FeedbackSettings:
    """The last output in the input: its share, and how it moves each frame."""

    amount: float = parameter("/feedback")
    zoom: float = parameter("/feedback/zoom")
    rotate: float = parameter("/feedback/rotate")
    x: float = parameter("/feedback/x")
    y: float = parameter("/feedback/y")
    hue: float = parameter("/feedback/hue")
    edge: str = parameter("/feedback/edge")


@dataclass(frozen=True)
class MaskSettings:
    """Where the picture is diffused."""

    source: str = parameter("/mask")
    invert: bool = parameter("/mask/invert")
    feather: float = parameter("/mask/feather")


@dataclass(frozen=True)
class EffectSettings:
    """What happens to pictures before they are encoded and after they are decoded."""

    input_grade: InputGradeSettings
    output_grade: OutputGradeSettings
    feedback: FeedbackSettings
    mask: MaskSettings
    mirror: str = parameter("/input/mirror")
    kaleidoscope: int = parameter("/input/kaleidoscope")
    mix: float = parameter("/mix")
    motion_share: float = parameter("/consistency/motion")


@dataclass(frozen=True)
class LoraSettings:
    """One LoRA slot: a file (empty: none) and its weight."""

    file: str = parameter("/lora/{}")
    weight: float = parameter("/lora/{}/weight")


@dataclass(frozen=True)
class ControlNetSettings:
    """One ControlNet slot: a file (empty: none), its weight, the share of the steps, and its control image."""

    file: str = parameter("/control/{}")
    enabled: bool = parameter("/control/{}/on")
    full_weight: float = parameter("/control/{}/weight")
    start: float = parameter("/control/{}/start")
    end: float = parameter("/control/{}/end")
    image: str = parameter("/control/{}/from")

    @property
    def weight(self) -> float:
        """Return the weight in effect, 0 where it is off."""
        return self.full_weight if self.enabled else 0.0

    def weight_at(self, position: int, steps: int) -> float:
        """Return the weight at step ``position`` of ``steps``, counted as diffusers does: from ``start`` to ``end``."""
        return self.weight if position / steps >= self.start and (position + 1) / steps <= self.end else 0.0


@dataclass(frozen=True)
class ImagePromptSettings:
    """The image prompt (IP-Adapter): the reference picture or ``source``, the adapter, its encoder, and its weight."""

    picture: str = parameter("/reference")
    model: str = parameter("/reference/model")
    encoder: str = parameter("/reference/encoder")
    enabled: bool = parameter("/reference/on")
    full_weight: float = parameter("/reference/weight")

    @property
    def weight(self) -> float:
        """Return the weight in effect, 0 where it is off."""
        return self.full_weight if self.enabled else 0.0

    @property
    def follows_source(self) -> bool:
        """Return whether the reference picture is the second source, which keeps changing."""
        return self.picture == "source"


@dataclass(frozen=True)
class AdapterSettings:
    """What is added to the model while it runs."""

    image_prompt: ImagePromptSettings
    depth_model: str = parameter("/control/depth")
    loras: tuple[LoraSettings, ...] = each(LoraSettings, 4)
    controlnets: tuple[ControlNetSettings, ...] = each(ControlNetSettings, 3)


@dataclass(frozen=True)
class ModelSettings:
    """What needs a reload when it changes, and how long the new stream fades in, in seconds."""

    model: str = parameter("/model")
    autoencoder: str = parameter("/autoencoder")
    size_text: str = parameter("/size")
    dtype: str = parameter("/dtype")
    fade_seconds: float = parameter("/model/fade")

    @property
    def size(self) -> tuple[int, int]:
        """Return (width, height) of the working size."""
        return parse_size(self.size_text)


@dataclass(frozen=True)
class LookSettings:
    """What a crossfade mixes by meaning: prompts by their embeddings, seeds by their noises."""

    prompt: str = parameter("/prompt")
    prompt_weight: float = parameter("/prompt/1/weight")
    prompt_2: str = parameter("/prompt/2")
    prompt_2_weight: float = parameter("/prompt/2/weight")
    prompt_3: str = parameter("/prompt/3")
    prompt_3_weight: float = parameter("/prompt/3/weight")
    prompt_4: str = parameter("/prompt/4")
    prompt_4_weight: float = parameter("/prompt/4/weight")
    blend: str = parameter("/prompt/blend")
    negative: str = parameter("/negative")
    seed: int = parameter("/seed")
    seed_2: int = parameter("/seed/2")
    seed_mix: float = parameter("/seed/mix")

    @property
    def seeds(self) -> tuple[int, int, float]:
        """Return both seeds and the mix from the first (0) to the second (1)."""
        return self.seed, self.seed_2, self.seed_mix

    @property
    def weighted_prompts(self) -> tuple[tuple[str, ...], tuple[float, ...]]:
        """Return the texts with a weight above 0 and their weights; the first prompt at 1 where none has one."""
        pairs = [(self.prompt, self.prompt_weight)]
        further = [
            (self.prompt_2, self.prompt_2_weight),
            (self.prompt_3, self.prompt_3_weight),
            (self.prompt_4, self.prompt_4_weight),
        ]
        pairs += [(text, weight) for text, weight in further if text]
        pairs = [(text, weight) for text, weight in pairs if weight > 0.0] or [(self.prompt, 1.0)]
        return tuple(text for text, _ in pairs), tuple(weight for _, weight in pairs)


@dataclass(frozen=True)
class FallbackSettings:
    """What the audience sees while the engine or the source is away."""

    engine: str = parameter("/fallback")
    source: str = parameter("/fallback/source")
    still: str = parameter("/fallback/still")


@dataclass(frozen=True)
class OutputSettings:
    """What the bridge does with pictures on their way out."""

    fallback: FallbackSettings
    freeze: bool = parameter("/freeze")
    bypass: bool = parameter("/bypass")
    blackout: bool = parameter("/blackout")
    master: float = parameter("/master")
    fit: str = parameter("/fit")
    rate: int = parameter("/output/rate")
    interpolation: str = parameter("/output/between")
    sharpen: float = parameter("/output/sharpen")
    size_text: str = parameter("/output/size")

    @property
    def size(self) -> tuple[int, int] | None:
        """Return (width, height) of the output, None for the working size."""
        return parse_size(self.size_text) if self.size_text else None

    @property
    def brightness(self) -> float:
        """Return the share of full brightness, 0 to 1."""
        return 0.0 if self.blackout else self.master


@dataclass(frozen=True)
class ModulatorSettings:
    """One modulator: the parameter that it moves, its shape, depth as a share of the range, and cycle in beats."""

    enabled: bool = parameter("/mod/{}/on")
    target: str = parameter("/mod/{}/to")
    shape: str = parameter("/mod/{}/shape")
    depth: float = parameter("/mod/{}/depth")
    rate: float = parameter("/mod/{}/rate")
    phase: float = parameter("/mod/{}/phase")


@dataclass(frozen=True)
class ModulationSettings:
    """All modulators, and the audio levels that they can follow, 0 to 1."""

    modulators: tuple[ModulatorSettings, ...] = each(ModulatorSettings, MODULATORS)
    level: float = parameter("/audio/level")
    bass: float = parameter("/audio/bass")
    mid: float = parameter("/audio/mid")
    high: float = parameter("/audio/high")

    @property
    def levels(self) -> Mapping[str, float]:
        """The audio levels by the shape that follows each."""
        return {"level": self.level, "bass": self.bass, "mid": self.mid, "high": self.high}


@dataclass(frozen=True)
class HookSettings:
    """One effect of the user's: whether it is on, and its parameters by the last part of their names."""

    enabled: bool = True
    values: Mapping[str, float] = field(default_factory=dict)


#: Effects without declared parameters are on.
DEFAULT_HOOK = HookSettings()


def read_hooks(values: Mapping[str, Value]) -> dict[str, HookSettings]:
    """Return the settings of every effect that has parameters ``/hook/NAME/…``."""
    by_name: dict[str, dict[str, float]] = {}
    for name, value in values.items():
        if name.startswith("/hook/") and not isinstance(value, str):
            _, _, hook, key = name.split("/", 3)
            by_name.setdefault(hook, {})[key] = float(value)
    return {hook: HookSettings(bool(entries.get("on", 1.0)), entries) for hook, entries in by_name.items()}
