"""Broken models: mutated configs, damaged weights and things that are no files: one line, soon, in little memory."""

from __future__ import annotations

import json
import os
import random
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.models import ModelError, load
from engine.models.component_files import MAX_NESTING, read_config, read_json
from engine.models.noise_schedule import MAX_TIMESTEPS, read_noise_schedule
from engine.shared.parameter import InvalidValue
from tests.engine.checkpoints import edit_json
from tests.engine.single_file import save_single_file

CPU = torch.device("cpu")
UNET = "unet/diffusion_pytorch_model.safetensors"
CONFIGS = (
    "model_index.json", "unet/config.json", "vae/config.json", "text_encoder/config.json",
    "scheduler/scheduler_config.json", "tokenizer/tokenizer_config.json",
)  # fmt: skip
#: Values that a mutation puts in place of another. Numbers would fill the memory if they were believed.
ODD_VALUES: tuple[Any, ...] = (
    None, "", "many", -1, 0, 1.5, 10**9, 2**31, 2**63, 10**400, -(10**9), [], {}, [[]], [10**9] * 4, [-1, "x"],
    True, {"a": {"b": 1}}, "../x", [0] * 1000, ["x"] * 20_000, "\ud800", "owner/name",
)  # fmt: skip
#: Longest time and most memory that a refusal may take.
MAX_SECONDS, MAX_MIB = 10.0, 600
MUTATIONS = 40


def peak_mib() -> float:
    import resource  # Windows has none

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def refuse(folder: Path) -> str:
    """Load a model that must be refused; return the line."""
    start = time.perf_counter()
    with pytest.raises(InvalidValue) as caught:
        load(str(folder), CPU, torch.float32)
    assert time.perf_counter() - start < MAX_SECONDS
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 2000
    return text


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path to each entry of a JSON value."""
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, entry in entries:
        yield (*path, key)
        yield from places(entry, (*path, key))


@pytest.mark.skipif(sys.platform == "win32", reason="needs resource")
def test_a_mutated_config_is_loaded_or_refused_in_one_line(copy: Path) -> None:
    choice, before = random.Random(7), peak_mib()
    for _ in range(MUTATIONS):
        file = copy / choice.choice(CONFIGS)
        text = file.read_text(encoding="utf-8")
        content = json.loads(text)
        *parents, last = choice.choice(list(places(content)))
        target = content
        for key in parents:
            target = target[key]
        if isinstance(target, dict) and choice.random() < 0.2:
            del target[last]
        else:
            target[last] = choice.choice(ODD_VALUES)
        file.write_text(json.dumps(content), encoding="utf-8")
        start = time.perf_counter()
        line = ""
        try:
            load(str(copy), CPU, torch.float32)
        except InvalidValue as error:
            line = str(error)
        assert "\n" not in line, (file, parents, last)
        assert time.perf_counter() - start < MAX_SECONDS, (file, parents, last, target)
        file.write_text(text, encoding="utf-8")
    assert peak_mib() - before < MAX_MIB


def overlap(path: Path) -> None:
    """Write a file whose two tensors share their bytes."""
    entries = {name: {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} for name in ("a", "b")}
    header = json.dumps(entries).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))


def make_sparse(path: Path) -> None:
    path.unlink()
    with path.open("wb") as file:
        file.truncate(3 << 30)


def loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path)


def make_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def to_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGES: dict[str, Callable[[Path], object]] = {
    "wide blocks": lambda f: edit_json(f / "unet/config.json", block_out_channels=[10**9, 10**9]),
    "large blocks": lambda f: edit_json(f / "unet/config.json", block_out_channels=[40_000, 40_000], norm_num_groups=8),
    "many layers": lambda f: edit_json(f / "unet/config.json", layers_per_block=1900),
    "too many layers": lambda f: edit_json(f / "unet/config.json", layers_per_block=10**9),
    "many text layers": lambda f: edit_json(f / "text_encoder/config.json", num_hidden_layers=1900),
    "large vocabulary": lambda f: edit_json(f / "text_encoder/config.json", vocab_size=10**8),
    "negative vocabulary": lambda f: edit_json(f / "text_encoder/config.json", vocab_size=-5),
    "long positions": lambda f: edit_json(f / "text_encoder/config.json", max_position_embeddings=2**31 - 1),
    "wide autoencoder": lambda f: edit_json(f / "vae/config.json", block_out_channels=[60_000] * 4),
    "many timesteps": lambda f: edit_json(f / "scheduler/scheduler_config.json", num_train_timesteps=2**31),
    "no timesteps": lambda f: edit_json(f / "scheduler/scheduler_config.json", num_train_timesteps=0),
    "betas above 1": lambda f: edit_json(f / "scheduler/scheduler_config.json", beta_end=7.0),
    "NaN": lambda f: (f / "unet/config.json").write_text('{"sample_size": NaN}'),
    "infinity": lambda f: (f / "unet/config.json").write_text('{"sample_size": 1e999}'),
    "nested": lambda f: (f / "unet/config.json").write_text("[" * 100_000),
    "nested index": lambda f: (f / "model_index.json").write_text('{"a":' * 500 + "1" + "}" * 500),
    "a list": lambda f: (f / "unet/config.json").write_text("[]"),
    "empty config": lambda f: (f / "vae/config.json").write_bytes(b""),
    "not UTF-8": lambda f: (f / "text_encoder/config.json").write_bytes(b'{"\xff\xfe": 1}'),
    "sparse config": lambda f: make_sparse(f / "text_encoder/config.json"),
    "sparse weights": lambda f: make_sparse(f / UNET),
    "empty weights": lambda f: (f / UNET).write_bytes(b""),
    "cut header": lambda f: (f / UNET).write_bytes((f / UNET).read_bytes()[:1000]),
    "long header": lambda f: (f / UNET).write_bytes((2**62).to_bytes(8, "little") + bytes(100)),
    "overlapping tensors": lambda f: overlap(f / UNET),
    "weights of another model": lambda f: (f / UNET).write_bytes((f / "vae" / Path(UNET).name).read_bytes()),
    "no tokenizer": lambda f: shutil.rmtree(f / "tokenizer"),
    "no scheduler": lambda f: shutil.rmtree(f / "scheduler"),
    "folder as config": lambda f: to_folder(f / "unet/config.json"),
    "folder as weights": lambda f: to_folder(f / UNET),
}  # fmt: skip
LINUX_DAMAGES: dict[str, Callable[[Path], object]] = {
    "pipe as index": lambda f: make_pipe(f / "model_index.json"),
    "pipe as config": lambda f: make_pipe(f / "vae/config.json"),
    "pipe as weights": lambda f: make_pipe(f / UNET),
    "pipe as scheduler": lambda f: make_pipe(f / "scheduler/scheduler_config.json"),
    "pipe as vocabulary": lambda f: make_pipe(f / "tokenizer/tokenizer.json"),
    "pipe beside the tokenizer": lambda f: os.mkfifo(f / "tokenizer/added_tokens.json"),
    "pipe beside the weights": lambda f: os.mkfifo(f / "text_encoder/generation_config.json"),
    "link to itself": lambda f: loop(f / "unet/config.json"),
    "link to itself as weights": lambda f: loop(f / UNET),
    "device as config": lambda f: ((f / "unet/config.json").unlink(), (f / "unet/config.json").symlink_to("/dev/zero")),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_broken_model_is_refused_in_one_line(damage: str, copy: Path) -> None:
    DAMAGES[damage](copy)
    refuse(copy)


@pytest.mark.skipif(sys.platform == "win32", reason="needs pipes and links")
@pytest.mark.parametrize("damage", LINUX_DAMAGES)
def test_what_is_no_file_is_refused_without_waiting(damage: str, copy: Path) -> None:
    LINUX_DAMAGES[damage](copy)
    refuse(copy)


@pytest.mark.skipif(sys.platform == "win32", reason="needs pipes and links")
def test_a_name_that_is_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    os.mkfifo(tmp_path / "pipe.safetensors")
    (tmp_path / "folder.safetensors").mkdir()
    for name in ("loop", "pipe.safetensors", "folder.safetensors", "x" * 5000, "a\0b", "\ud800"):
        refuse(tmp_path / name)
    for name in ("~nobody-of-this-name/model", "", "owner/", "/", "~"):
        with pytest.raises(ModelError):
            load(name, CPU, torch.float32)


@pytest.mark.parametrize("component", ["unet", "vae", "text_encoder"])
def test_the_settings_of_a_single_file_are_checked_before_anything_is_allocated(
    component: str, model: Path, tmp_path: Path
) -> None:
    path = save_single_file(model, tmp_path / "single.safetensors")
    size = {"vocab_size": 10**9} if component == "text_encoder" else {"block_out_channels": [50_000, 50_000]}
    edit_json(path.with_suffix("") / component / "config.json", **size)
    assert "far larger" in refuse(path)


def test_json_is_bounded(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text('{"a":' * MAX_NESTING + "1" + "}" * MAX_NESTING)
    assert read_json(file)
    file.write_text('{"a":' * (MAX_NESTING + 1) + "1" + "}" * (MAX_NESTING + 1))
    with pytest.raises(ValueError, match="nested too deeply"):
        read_json(file)
    for text in ('{"num_hidden_layers": 2001}', '{"vocab_size": 4294967296}', '{"backbone": "owner/name"}'):
        file.write_text(text)
        assert read_json(file)
        with pytest.raises(ValueError, match=r"config\.json"):
            read_config(file)


def test_schedules_have_an_upper_limit() -> None:
    config = {"_class_name": "DDIMScheduler", "beta_start": 0.0001, "beta_end": 0.0002}
    alphas = read_noise_schedule(config | {"num_train_timesteps": MAX_TIMESTEPS // 10}).alphas
    assert alphas is not None
    assert len(alphas) == MAX_TIMESTEPS // 10
    for more in ({"num_train_timesteps": MAX_TIMESTEPS + 1}, {"trained_betas": [0.0] * (MAX_TIMESTEPS + 1)}):
        with pytest.raises(ModelError, match="timesteps is not supported"):
            read_noise_schedule({"num_train_timesteps": 1000} | config | more)
