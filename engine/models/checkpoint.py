"""Checkpoints: a diffusers folder, a hub name or a single file → its components, loaded."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path
from typing import Any

import torch

from engine.models.architectures import (
    ARCHITECTURES,
    Architecture,
    find_named_architecture,
    find_single_file_architecture,
)
from engine.models.component_files import (
    PICKLE_SUFFIXES,
    check_texts,
    count_elements,
    find_weights,
    read_config,
    read_json,
    read_shapes,
)
from engine.models.components import (
    AUTOENCODER_CLASSES,
    COMPONENTS,
    TOKENIZERS,
    build_empty,
    check_class_name,
    get_class,
    load_module,
    load_tokenizer,
    read_class,
)
from engine.models.declared_size import check_declared
from engine.models.hub import Progress, fetch, is_hub_name
from engine.models.model_error import ModelError
from engine.models.precision import Precision
from engine.shared.options import EngineOptions

log = logging.getLogger(__name__)
POCKET = Path(__file__).parent.parent / "pocket" / "model"
POCKET_DIT = POCKET.parent / "dit"
#: Names of the models in the package, the default first.
BUILT_IN = {"pocket": POCKET, "pocket-dit": POCKET_DIT}
#: Files to download from the hub; pickles only with --allow-pickle.
DOWNLOAD_PATTERNS = ["*.json", "*.txt", "*.model", "*.jinja", "*.safetensors"]
#: Settings and tokenizers alone, for a single file.
SETTINGS_PATTERNS = ["*.json", "*/*.json", "*.txt", "*/*.txt", "*/*.model"]
#: Components of a pipeline that are never loaded.
_UNUSED = {"safety_checker", "feature_extractor", "image_encoder", "image_processor"}


def resolve(name: str, options: EngineOptions, progress: Progress | None = None, requested: str = "") -> Path:
    """Return the folder or file of a model's ``name``, downloaded if it is a hub name. Raises ModelError.

    ``requested`` is what the user asked for if that is not ``name``.
    """
    path = BUILT_IN.get(name) or Path(name).expanduser()
    if path.is_file() and path.suffix != ".safetensors":
        raise ModelError(f"model {path}: a single file must be .safetensors; convert it, or use a diffusers folder")
    if path.is_dir() or path.is_file():
        return path
    if path.exists():
        raise ModelError(f"model {path} is neither a folder nor a regular file; use a diffusers folder")
    if is_hub_name(name):
        patterns = DOWNLOAD_PATTERNS + ([f"*{suffix}" for suffix in PICKLE_SUFFIXES] if options.allow_pickle else [])
        # Skip original-format weights next to the folders of a diffusers repository: they are copies.
        root_patterns = ["*.json", "diffusion_pytorch_model*.safetensors"]
        return fetch(name, options, [f"*/{p}" for p in patterns] + root_patterns, progress, requested)
    names = ", ".join(BUILT_IN)
    raise ModelError(f"model {name!r}: no such folder or file; use {names}, a path or a hub name such as owner/name")


def load_components(path: Path, precision: Precision, options: EngineOptions) -> dict[str, Any]:
    """Load the checkpoint's components by their diffusers names, and ``scheduler`` and ``index`` as plain settings."""
    return _load_folder(path, precision, options) if path.is_dir() else _load_single_file(path, precision.main, options)


def peek_architecture(path: Path) -> type[Architecture] | None:
    """Return the architecture that a checkpoint declares before its weights are read, None if that is not supported.

    Of several for one denoiser it is any. Raises ModelError, OSError or ValueError for damaged files.
    """
    if path.is_file():
        return find_single_file_architecture(read_shapes(path))
    return find_named_architecture(read_class_names(path))


def read_class_names(folder: Path) -> dict[str, str]:
    """Return the names of the classes in a folder's index by component. Raises ModelError, OSError or ValueError."""
    entries = ((name, entry[1]) for name, entry in _read_index(folder).items() if isinstance(entry, list) and entry[1:])
    return {name: class_name for name, class_name in entries if isinstance(class_name, str)}


def load_autoencoder(
    name: str,
    architecture: type[Architecture],
    dtype: torch.dtype,
    options: EngineOptions,
    progress: Progress | None = None,
) -> Any:
    """Load the autoencoder called ``name``; ``tiny`` is the one distilled for the architecture. Raises ModelError."""
    if name == "tiny" and not architecture.tiny_autoencoder:
        raise ModelError(
            f"autoencoder 'tiny': there is none for {architecture.title}; use a folder or a hub name such as owner/name"
        )
    folder = resolve(architecture.tiny_autoencoder if name == "tiny" else name, options, progress, name)
    config = folder / "config.json"
    if not config.is_file():
        raise ModelError(f"autoencoder {name!r}: no config.json in {folder}; use an autoencoder's diffusers folder")
    class_name = str(read_config(config).get("_class_name", ""))
    if class_name not in AUTOENCODER_CLASSES:
        raise ModelError(
            f"autoencoder {name!r}: class {class_name[:80] or '(none)'} is not supported; "
            f"use one of {', '.join(sorted(AUTOENCODER_CLASSES))}"
        )
    what = f"autoencoder {name!r}:"
    return load_module(get_class("diffusers", class_name, what), folder, dtype, what, options.allow_pickle)


def list_weight_files(path: Path, allow_pickle: bool = False, components: tuple[str, ...] = COMPONENTS) -> list[Path]:
    """Return the weight files that loading ``path`` reads: those of half precision only if there are no others.

    Raises what ``find_weights`` does.
    """
    if path.is_file():
        return [path]
    present = [path / component for component in components if (path / component).is_dir()]
    files = [file for folder in present for file in find_weights(folder, allow_pickle, f"model {path}:")]
    return [file for file in files if ".fp16." not in file.name] or files


def _load_folder(folder: Path, precision: Precision, options: EngineOptions) -> dict[str, Any]:
    """Load the components that ``model_index.json`` names, each by its class; no pipeline is built."""
    what, index = f"model {folder}", _read_index(folder)
    components: dict[str, Any] = {"index": index}
    for component in (*COMPONENTS, *TOKENIZERS):
        loaded_class = read_class(index.get(component), component, what)
        if loaded_class is None:
            continue
        if component in TOKENIZERS:
            components[component] = load_tokenizer(loaded_class, folder / component)
        else:
            dtype = precision.of(loaded_class.__name__)
            arguments = (folder / component, dtype, f"{what}:", options.allow_pickle)
            components[component] = load_module(loaded_class, *arguments)
    components["scheduler"] = read_json(folder / "scheduler" / "scheduler_config.json")
    return components


def _read_index(folder: Path) -> dict[str, Any]:
    index_file = folder / "model_index.json"
    if not index_file.is_file():
        raise ModelError(f"model {folder}: no model_index.json; use a diffusers folder or a .safetensors file")
    return read_json(index_file)


def _load_single_file(path: Path, dtype: torch.dtype, options: EngineOptions) -> dict[str, Any]:
    """Load the components of an original-format checkpoint, recognized by the names of its weights.

    Their settings and tokenizers come from a folder of the same name next to the file, or else from the hub.
    """
    import diffusers
    from diffusers.loaders.single_file_utils import SingleFileComponentError

    shapes = read_shapes(path)
    architecture = find_single_file_architecture(shapes)
    if architecture is None:
        titles = ", ".join(known.title for known in ARCHITECTURES if known.single_file_key)
        raise ModelError(
            f"model {path}: not recognized as a checkpoint of {titles}; use a diffusers folder (adapters go to /lora)"
        )
    config = path.with_suffix("")
    if not config.is_dir():
        config = _fetch_settings(path, shapes, options)
    _check_settings(path, config, count_elements([path]))
    pipeline_class = getattr(diffusers, architecture.single_file_pipeline)
    unused = {name: None for name in _UNUSED if name in pipeline_class.__init__.__annotations__}
    try:
        pipeline = pipeline_class.from_single_file(
            str(path), torch_dtype=dtype, config=str(config), local_files_only=True, **unused
        )
    except SingleFileComponentError as error:
        missing = str(error).split(".from_pretrained")[0].split("\n")[-1].split(" ")[0]
        raise ModelError(f"model {path}: its {missing} is not in the file; use this model's diffusers folder") from None
    components = {name: component for name, component in pipeline.components.items() if component is not None}
    for name, component in components.items():
        if isinstance(component, torch.nn.Module):
            _check_complete(path, name, component)
    components["scheduler"] = dict(pipeline.scheduler.config) | {"_class_name": type(pipeline.scheduler).__name__}
    components["index"] = dict(pipeline.config)
    return components


def _fetch_settings(path: Path, shapes: dict[str, tuple[int, ...]], options: EngineOptions) -> Path:
    """Return the folder of the settings for a single file: those of the checkpoint that it resembles, from the hub."""
    from diffusers.loaders.single_file_utils import fetch_diffusers_config

    weights = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    repository = str(fetch_diffusers_config(weights)["pretrained_model_name_or_path"])
    try:
        return fetch(repository, options, SETTINGS_PATTERNS, requested=str(path))
    except ModelError as error:
        raise ModelError(f"model {path} needs settings, in a folder of the same name or of {error}") from None


def _check_settings(path: Path, folder: Path, stored: int) -> None:
    """Check the settings of a single file as those of a folder are checked, for diffusers loads what they name."""
    what, index = f"model {path}", _read_index(folder)
    for name, entry in index.items():
        if name.startswith("_") or not isinstance(entry, list) or name in _UNUSED:
            continue
        if name == "scheduler":
            if entry[0] != "diffusers" or not str(entry[-1]).endswith("Scheduler"):
                raise ModelError(f"{what}: its scheduler is not one of diffusers; use another model")
            read_json(folder / "scheduler" / "scheduler_config.json")
            continue
        loaded_class = read_class(entry, name, what)
        if loaded_class is not None and name in COMPONENTS:
            config = read_config(folder / name / "config.json")
            check_class_name(config.get("_class_name"), loaded_class, what)
            check_declared(partial(build_empty, loaded_class, config), stored)
        elif loaded_class is not None:
            check_texts(folder / name)


def _check_complete(path: Path, name: str, module: torch.nn.Module) -> None:
    """Raise ModelError if the file had no values for one of the module's weights."""
    if not any(tensor.is_meta for tensor in module.parameters()):
        return
    getattr(module, "tie_weights", lambda: None)()  # a tied tensor is in the file under one of its two names
    missing = next((key for key, tensor in module.named_parameters() if tensor.is_meta), None)
    if missing is not None:
        raise ModelError(f"model {path}: {name} has no {missing}; the file is incomplete, download it again")
