"""Files of a checkpoint, checked before a library opens them: regular, bounded, inside their folder, no pickles."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from engine.models.model_error import ModelError
from engine.shared.user_files import check_regular, read_bytes

#: Largest JSON file that is parsed, deepest nesting in one, and largest header of a safetensors file.
MAX_JSON_BYTES, MAX_NESTING, MAX_HEADER_BYTES = 16 << 20, 32, 32 << 20
#: Largest other text of a tokenizer: those of language models hold large vocabularies.
MAX_TEXT_BYTES = 128 << 20
PICKLE_SUFFIXES = (".bin", ".ckpt", ".pt", ".pth")
_TEXT_SUFFIXES = (".json", ".txt", ".model", ".jinja")
#: Largest integer in a component's config, and largest one that counts layers or blocks.
MAX_INTEGER, MAX_COUNT = 1 << 31, 2_000
_COUNTS = ("layers", "blocks", "depth", "depths", "layers_per_block", "stages", "num_labels")
#: Entries by which a config brings code, names other repositories, or needs libraries beyond those of the engine.
_FOREIGN_ENTRIES = {
    "auto_map": "brings its own code",
    "custom_pipelines": "brings its own code",
    "quantization_config": "is quantized",
    "use_pretrained_backbone": "names a backbone that would be downloaded",
    "use_timm_backbone": "needs timm",
    "attn_implementation": "names an attention kernel",
    "_attn_implementation": "names an attention kernel",
    "_attn_implementation_internal": "names an attention kernel",
    "experts_implementation": "names a kernel",
    "use_kernels": "needs kernels of the hub",
    "kernel_config": "needs kernels of the hub",
    "transformers_weights": "names its weights itself, which may be a pickle",
    "configuration_files": "names other configs",
}
#: Entries of a tokenizer's config by which it names a file, wherever that is.
_TOKENIZER_FILES = ("tokenizer_file", "vocab_file", "merges_file", "spm_file", "gguf_file")


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file. Raises OSError, or ValueError for one that is too large, odd or nested.

    Infinity is accepted: diffusers writes it into schedulers' configs.
    """
    data = read_bytes(path, MAX_JSON_BYTES)
    try:
        content = json.loads(data.decode("utf-8"))
    except RecursionError:
        raise ValueError(f"{path.name} is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"{path.name} is not valid JSON ({error})") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path.name} holds no JSON object")
    for _ in _walk(content, path.name):
        pass  # raises for deep nesting
    return content


def read_config(path: Path) -> dict[str, Any]:
    """Return a component's config, as ``read_json`` does.

    Raises ValueError also for one that brings code, refers to other repositories, or counts beyond all reason.
    """
    config = read_json(path)
    for key, value in _walk(config, path.name):
        if value and key in _FOREIGN_ENTRIES:
            raise ValueError(f"{path.name}: {key} is not supported (the model {_FOREIGN_ENTRIES[key]})")
        if key == "backbone" and isinstance(value, str):
            raise ValueError(f"{path.name}: backbone {value[:80]!r} is not supported; it must have a backbone_config")
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{path.name}: {key} is not a finite number")
        limit = MAX_COUNT if key.endswith(_COUNTS) else MAX_INTEGER
        if isinstance(value, int) and abs(value) > limit:
            raise ValueError(f"{path.name}: {key} is {str(value)[:20]}, more than {limit}")
    return config


def check_texts(folder: Path) -> None:
    """Check the texts of a tokenizer's folder. Raises OSError or ValueError."""
    for path in _files(folder, _TEXT_SUFFIXES):
        status = check_regular(path)
        if status.st_size > MAX_TEXT_BYTES:
            raise ValueError(f"{path.name} is larger than {MAX_TEXT_BYTES >> 20} MiB")
        if path.suffix == ".json" and path.name != "tokenizer.json":  # that one is not parsed in Python
            content = read_json(path)
            if content.get("auto_map"):
                raise ValueError(f"{path.name}: auto_map is not supported (the model brings its own code)")
            if files := [key for key in _TOKENIZER_FILES if content.get(key)]:
                raise ValueError(f"{path.name}: {files[0]} is not supported (it names a file); remove the entry")


def find_weights(folder: Path, allow_pickle: bool, what: str) -> list[Path]:
    """Return the weight files of a component: safetensors, or pickles if there are no others and they are allowed.

    Raises ModelError that begins with ``what``, OSError and ValueError; also for an index that names other files.
    """
    for path in _files(folder, _TEXT_SUFFIXES):
        check_regular(path)
    if (folder / "adapter_config.json").exists():
        raise ModelError(f"{what} {folder.name} is an adapter for another model (adapter_config.json)")
    files = [path for path in _files(folder, (".safetensors",)) if check_regular(path)]
    if not files:
        files = [path for path in _files(folder, PICKLE_SUFFIXES) if check_regular(path)]
        if not files:
            raise ModelError(f"{what} {folder.name} has no weights; download the model again")
        if not allow_pickle:
            raise ModelError(
                f"{what} {folder.name}/{files[0].name} is a pickle, which can run any code when loaded; "
                "use a safetensors checkpoint, or --allow-pickle if you trust its author"
            )
    allowed = {path.name for path in files}
    for path in _files(folder, (".json",)):
        if ".index." in path.name:  # also model.safetensors.index.fp16.json
            _check_index(path, allowed, files[0].suffix == ".safetensors")
    return files


def count_elements(files: Iterable[Path]) -> int:
    """Return the number of values in weight files, from the headers of safetensors; for a pickle, its bytes.

    Raises OSError, and SafetensorError or ValueError for a damaged file.
    """
    total = 0
    for file in files:
        if file.suffix != ".safetensors":
            total += check_regular(file).st_size
            continue
        total += sum(math.prod(shape) for shape in read_shapes(file).values())
    return total


def read_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes in a safetensors file by name. Raises what ``count_elements`` does."""
    from safetensors import safe_open

    check_header(file)
    with safe_open(file, "numpy") as weights:  # checks the offsets; torch would reserve memory for the whole file
        return {key: tuple(weights.get_slice(key).get_shape()) for key in weights.keys()}  # noqa: SIM118 -- no mapping


def check_header(file: Path) -> None:
    """Raise ValueError where the header of a safetensors file cannot be right, OSError for no regular file."""
    size = check_regular(file).st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
    if not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
        raise ValueError(f"{file.name} is no safetensors file, or is cut short")


def _check_index(path: Path, allowed: set[str], safe: bool) -> None:
    """Check that an index of several files names files of its own folder, and no pickles where ``safe``."""
    if safe and ".safetensors.index." not in path.name:
        return  # the index of the pickles next to them, which nobody opens
    weight_map = read_json(path).get("weight_map")
    if not isinstance(weight_map, dict):
        raise ValueError(f"{path.name} has no weight_map")
    for name in set(map(str, weight_map.values())):
        if name not in allowed:
            raise ValueError(f"{path.name} names {name[:80]!r}, which is no weight file of its folder")


def _files(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """Return the entries of a folder whose names end so, whatever they are."""
    return sorted(path for path in folder.iterdir() if path.name.endswith(suffixes)) if folder.is_dir() else []


def _walk(content: object, name: str) -> Iterator[tuple[str, Any]]:
    """Yield each value in ``content`` with the key that leads to it. Raises ValueError for deep nesting."""
    waiting = [("", content, 0)]
    while waiting:
        key, value, depth = waiting.pop()
        if depth > MAX_NESTING:
            raise ValueError(f"{name} is nested too deeply")
        if key:
            yield key, value
        if isinstance(value, dict):
            waiting += [(str(inner), entry, depth + 1) for inner, entry in value.items()]
        elif isinstance(value, list):
            waiting += [(key, entry, depth + 1) for entry in value]
