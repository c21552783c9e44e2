"""Immutable, numbered values of every parameter: what crosses to the engine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

from engine.shared import settings
from engine.shared.parameter import Value
from engine.shared.table import TABLE, canonical, lookup
from engine.shared.view import read

#: Parameters that a crossfade mixes by meaning: prompts by their embeddings, seeds by their noises.
MIXED = (
    "/prompt", *(f"/prompt/{i}" for i in (2, 3, 4)), *(f"/prompt/{i}/weight" for i in (1, 2, 3, 4)), "/prompt/blend",
    "/negative", "/seed", "/seed/2", "/seed/mix",
)  # fmt: skip
#: Looks, each by its values of MIXED, with their shares, which add up to 1.
Mixture = tuple[tuple[Mapping[str, Value], float], ...]


class Snapshot(Mapping[str, Value]):
    """Every parameter's value at one moment, numbered. Missing names take their defaults.

    ``mixture`` replaces the values of MIXED during a crossfade; it is empty otherwise. The typed views are built once,
    when they are first read.
    """

    def __init__(self, values: Mapping[str, Value] | None = None, number: int = 0, mixture: Mixture = ()) -> None:
        self._values = {name: p.default for name, p in TABLE.items() if p.has_value} | dict(values or {})
        self.number, self.mixture = number, mixture

    def __getstate__(self) -> dict[str, Any]:
        return {"_values": self._values, "number": self.number, "mixture": self.mixture}

    def __getitem__(self, name: str) -> Value:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def text(self, name: str) -> str:
        return str(self._values[name])

    def real(self, name: str) -> float:
        return float(self._values[name])

    def whole(self, name: str) -> int:
        return int(self._values[name])

    def flag(self, name: str) -> bool:
        return bool(self._values[name])

    @cached_property
    def diffusion(self) -> settings.DiffusionSettings:
        """How frames are noised and denoised."""
        return read(settings.DiffusionSettings, self._values)

    @cached_property
    def similarity(self) -> settings.SimilaritySettings:
        """The similarity filter."""
        return read(settings.SimilaritySettings, self._values)

    @cached_property
    def effects(self) -> settings.EffectSettings:
        """Picture effects before and after diffusion."""
        return read(settings.EffectSettings, self._values)

    @cached_property
    def adapters(self) -> settings.AdapterSettings:
        """LoRAs, ControlNets and the image prompt."""
        return read(settings.AdapterSettings, self._values)

    @cached_property
    def model(self) -> settings.ModelSettings:
        """The model and how it is run."""
        return read(settings.ModelSettings, self._values)

    @cached_property
    def output(self) -> settings.OutputSettings:
        """What the bridge does with pictures on their way out."""
        return read(settings.OutputSettings, self._values)

    @cached_property
    def modulation(self) -> settings.ModulationSettings:
        """Modulators and audio levels."""
        return read(settings.ModulationSettings, self._values)

    @cached_property
    def looks(self) -> tuple[tuple[settings.LookSettings, float], ...]:
        """The looks that are mixed and their shares: several during a crossfade, otherwise one at 1."""
        if not self.mixture:
            return ((read(settings.LookSettings, self._values), 1.0),)
        return tuple((read(settings.LookSettings, look), share) for look, share in self.mixture)

    @cached_property
    def hooks(self) -> Mapping[str, settings.HookSettings]:
        """The user's effects by name: whether each is on, and its values by the last part of their names."""
        return settings.read_hooks(self._values)


def parse_settings(values: Mapping[str, str]) -> dict[str, Value]:
    """Return checked values from texts, as ``--set NAME=VALUE`` gives them. Raises InvalidValue."""
    return {canonical(name): lookup(name).coerce([text]) for name, text in values.items()}
