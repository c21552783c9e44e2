"""Configs that mislead the libraries: to pickles, to files elsewhere, and into tables that fill the memory."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from engine.models import ModelError, load
from engine.models.components import build_empty
from engine.models.declared_size import check_declared
from engine.models.model_error import reading
from engine.shared.parameter import InvalidValue
from tests.engine.checkpoints import edit_json
from tests.engine.flows import save_lumina2

CPU = torch.device("cpu")
WEIGHTS = "text_encoder/model.safetensors"


def refuse(folder: Path) -> str:
    with pytest.raises(ModelError) as caught:
        load(str(folder), CPU, torch.float32)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def name_a_pickle(folder: Path) -> None:
    """Let the config name a pickle beside the safetensors file."""
    torch.save(load_file(folder / WEIGHTS), folder / "text_encoder" / "adapter_model.bin")
    edit_json(folder / "text_encoder" / "config.json", transformers_weights="adapter_model.bin")


def name_a_pickle_in_the_index_of_a_variant(folder: Path) -> None:
    """Let an index of half-precision files name a pickle; no file has the name that would come before it."""
    torch.save(load_file(folder / WEIGHTS), folder / "text_encoder" / "weights.bin")
    (folder / WEIGHTS).rename(folder / "text_encoder" / "weights.fp16.safetensors")
    index = {"metadata": {}, "weight_map": {"text_model.final_layer_norm.weight": "weights.bin"}}
    (folder / "text_encoder" / "model.safetensors.index.fp16.json").write_text(json.dumps(index))


def name_a_file_elsewhere(folder: Path) -> None:
    (folder / "elsewhere.json").write_bytes((folder / "tokenizer" / "tokenizer.json").read_bytes())
    edit_json(folder / "tokenizer" / "tokenizer_config.json", tokenizer_file=str(folder / "elsewhere.json"))


def name_another_config(folder: Path) -> None:
    (folder / "text_encoder" / "config.1.0.0.json").write_text('{"num_labels": 2000000000}')
    edit_json(folder / "text_encoder" / "config.json", configuration_files=["config.1.0.0.json"])


MISLEADING: dict[str, tuple[Callable[[Path], None], str]] = {
    "weights": (name_a_pickle, "transformers_weights"),
    "index of a variant": (name_a_pickle_in_the_index_of_a_variant, "weights.bin"),
    "tokenizer": (name_a_file_elsewhere, "tokenizer_file"),
    "other config": (name_another_config, "configuration_files"),
    "labels": (lambda f: edit_json(f / "text_encoder" / "config.json", num_labels=10**9), "num_labels"),
    "kernel": (lambda f: edit_json(f / "text_encoder" / "config.json", use_kernels=True), "use_kernels"),
}


@pytest.mark.parametrize("way", MISLEADING)
def test_a_config_that_leads_away_from_its_folder_is_refused(
    way: str, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unpickled: list[object] = []
    monkeypatch.setattr(torch, "load", lambda *arguments, **_: unpickled.append(arguments))
    mislead, word = MISLEADING[way]
    mislead(copy)
    assert word in refuse(copy)
    assert unpickled == []


def test_a_schedule_with_infinity_is_one_of_diffusers_and_loads(copy: Path) -> None:
    edit_json(copy / "scheduler" / "scheduler_config.json", lambda_min_clipped=-math.inf)
    assert "-Infinity" in (copy / "scheduler" / "scheduler_config.json").read_text()
    assert load(str(copy), CPU, torch.float32).noise_schedule.prediction == "epsilon"
    edit_json(copy / "unet" / "config.json", norm_eps=-math.inf)
    assert "norm_eps is not a finite number" in refuse(copy)


@pytest.mark.skipif(sys.platform == "win32", reason="needs resource")
def test_a_table_that_no_module_registers_is_measured_before_it_is_computed(tmp_path: Path) -> None:
    import resource

    folder = save_lumina2(tmp_path / "lumina")
    edit_json(folder / "transformer" / "config.json", axes_lens=[10**8, 10**8, 10**8])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert "far larger" in refuse(folder)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400 << 10, "in KiB"


def test_the_largest_models_pass_the_measurement() -> None:
    from diffusers import FluxTransformer2DModel, SD3Transformer2DModel

    for loader, config in ((FluxTransformer2DModel, {}), (SD3Transformer2DModel, {"pos_embed_max_size": 192})):
        with torch.device("meta"):
            stored = sum(tensor.numel() for tensor in build_empty(loader, config).parameters())
        check_declared(lambda loader=loader, config=config: build_empty(loader, config), stored)
        with pytest.raises(ValueError, match="far larger"):
            check_declared(lambda loader=loader, config=config: build_empty(loader, config), stored // 4)


class Panic(BaseException):
    """What a library written in Rust raises where its code gives up: no Exception."""


def test_a_panic_of_a_library_is_one_line() -> None:
    line = "model 'x' cannot be loaded: index out of bounds; use another"
    with pytest.raises(InvalidValue, match=line), reading("model 'x'", "; use another", "loaded"):
        raise Panic("index out of bounds\nnote: run with RUST_BACKTRACE=1")
    with pytest.raises(KeyboardInterrupt), reading("model 'x'"):
        raise KeyboardInterrupt
