"""Typed settings: every parameter is read by one field, under its own type, and a view is built once."""

from __future__ import annotations

import pickle
from collections import Counter
from dataclasses import fields
from typing import Any, get_type_hints

import pytest

from engine.shared import settings
from engine.shared.snapshot import MIXED, Snapshot
from engine.shared.table import RELOAD_PARAMETERS, TABLE

VIEWS = (
    settings.DiffusionSettings,
    settings.SimilaritySettings,
    settings.EffectSettings,
    settings.AdapterSettings,
    settings.ModelSettings,
    settings.OutputSettings,
    settings.ModulationSettings,
    settings.LookSettings,
)
PYTHON_TYPES = {"float": float, "int": int, "bool": bool}


def parameters(view: type[Any], number: int = 0) -> list[tuple[str, type[Any]]]:
    """Name and annotated type of every parameter that ``view`` reads, in its own fields and those of its views."""
    types = get_type_hints(view)
    result = []
    for entry in fields(view):
        metadata = entry.metadata
        if "parameter" in metadata:
            result.append((metadata["parameter"].format(number), types[entry.name]))
        elif "count" in metadata:
            for i in range(1, metadata["count"] + 1):
                result += parameters(metadata["view"], i)
        else:
            result += parameters(types[entry.name], number)
    return result


def test_every_engine_parameter_is_read_by_one_field() -> None:
    counts = Counter(name for view in VIEWS for name, _ in parameters(view))
    expected = {p.name for p in TABLE.values() if p.where == "engine" and p.kind not in ("trigger", "command")}
    assert expected - set(counts) == set()
    # The noise walk needs the seed at the moment, the looks those that are mixed.
    assert {name for name, count in counts.items() if count > 1} == {"/seed"}


def test_every_field_has_the_type_of_its_parameter() -> None:
    for view in VIEWS:
        for name, annotated in parameters(view):
            assert annotated is PYTHON_TYPES.get(TABLE[name].kind, str), name


def test_looks_read_what_a_crossfade_mixes() -> None:
    assert {name for name, _ in parameters(settings.LookSettings)} == set(MIXED)


def test_values_arrive_in_their_fields() -> None:
    snapshot = Snapshot(
        {
            "/guidance": 2.0,
            "/seed/travel": 3.0,
            "/seed/travel/unit": "beats",
            "/tempo": 90.0,
            "/lora/2": "ink",
            "/lora/2/weight": 0.3,
            "/control/3/on": False,
            "/control/3/weight": 1.5,
            "/output/size": "640x360",
            "/feedback/hue": 12.0,
        }
    )
    assert snapshot.diffusion.guidance.scale == 2.0
    assert snapshot.diffusion.guidance.active
    assert snapshot.diffusion.noise_walk.seeds_per_second == 4.5
    assert snapshot.adapters.loras[1] == settings.LoraSettings("ink", 0.3)
    assert snapshot.adapters.controlnets[2].weight == 0.0
    assert snapshot.output.size == (640, 360)
    assert snapshot.effects.feedback.hue == 12.0
    assert Snapshot().output.size is None
    assert Snapshot({"/blackout": True}).output.brightness == 0.0


def test_a_view_is_built_once_and_does_not_cross_the_pipe() -> None:
    snapshot = Snapshot({"/strength": 0.25}, 7)
    assert snapshot.diffusion is snapshot.diffusion
    size = len(pickle.dumps(Snapshot({"/strength": 0.25}, 7)))
    assert len(pickle.dumps(snapshot)) == size
    copy = pickle.loads(pickle.dumps(snapshot))
    assert copy.diffusion == snapshot.diffusion
    assert copy.number == 7


def test_settings_are_frozen() -> None:
    with pytest.raises(AttributeError):
        Snapshot().diffusion.steps = 3  # type: ignore[misc]


def test_a_mixture_gives_several_looks() -> None:
    ice = {name: TABLE[name].default for name in MIXED} | {"/prompt": "ice", "/seed": 3}
    fire = ice | {"/prompt": "fire", "/prompt/2": "smoke", "/prompt/2/weight": 0.5}
    looks = Snapshot(mixture=((ice, 0.75), (fire, 0.25))).looks
    assert [(look.prompt, share) for look, share in looks] == [("ice", 0.75), ("fire", 0.25)]
    assert looks[0][0].seeds == (3, 2, 0.0)
    assert looks[1][0].weighted_prompts == (("fire", "smoke"), (1.0, 0.5))


def test_hooks_are_read_by_name() -> None:
    hooks = Snapshot({"/hook/dim/on": False, "/hook/dim/amount": 0.5, "/hook/fault/kind": "nan"}).hooks
    assert hooks["dim"] == settings.HookSettings(False, {"on": 0.0, "amount": 0.5})
    assert "fault" not in hooks, "its value is a text, which no effect has"


def test_the_reload_parameters_are_those_that_are_not_live() -> None:
    assert {"/model", "/size", "/dtype", "/autoencoder"} == set(RELOAD_PARAMETERS)
