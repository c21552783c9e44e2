"""Immutable, numbered values of every parameter: what crosses to the engine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from engine.shared.parameter import Value
from engine.shared.table import TABLE, canonical, lookup

#: What a crossfade mixes for what it means: prompts by their embeddings, seeds by their noises.
MIXED = (
    "/prompt", *(f"/prompt/{i}" for i in (2, 3, 4)), *(f"/prompt/{i}/weight" for i in (1, 2, 3, 4)), "/prompt/blend", "/negative",
    "/seed", "/seed/2", "/seed/mix",
)  # fmt: skip
#: Looks, each by its values of MIXED, with their shares of the whole, which add up to 1.
Mixture = tuple[tuple[Mapping[str, Value], float], ...]


class Snapshot(Mapping[str, Value]):
    """Every parameter's value at one moment: immutable and numbered. Missing names take their defaults.

    ``mixture`` stands for the values of MIXED while a crossfade is on; it is empty otherwise.
    """

    def __init__(self, values: Mapping[str, Value] | None = None, number: int = 0, mixture: Mixture = ()) -> None:
        self._values = {name: p.default for name, p in TABLE.items() if p.has_value} | dict(values or {})
        self.number, self.mixture = number, mixture

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

    @property
    def looks(self) -> Mixture:
        """The mixture, or the values of MIXED as the only look."""
        return self.mixture or (({name: self._values[name] for name in MIXED}, 1.0),)


def parse_settings(values: Mapping[str, str]) -> dict[str, Value]:
    """Checked values from texts, as ``--set NAME=VALUE`` gives them. Raises BadValue."""
    return {canonical(name): lookup(name).coerce([text]) for name, text in values.items()}
