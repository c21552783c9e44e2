"""Checkpoints: a diffusers folder, a hub name or a single file → its components, loaded."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from engine.models.architectures import ARCHITECTURES, Architecture, find_single_file_architecture
from engine.shared.errors import first_line
from engine.shared.options import EngineOptions
from engine.shared.parameter import InvalidValue

log = logging.getLogger(__name__)
#: Callback for the progress of a download: bytes so far, bytes in all.
Progress = Callable[[int, int], None]
POCKET = Path(__file__).parent.parent / "pocket" / "model"
DENOISERS = ("unet", "transformer")
COMPONENTS = (*DENOISERS, "vae", "text_encoder", "text_encoder_2", "text_encoder_3")
TOKENIZERS = ("tokenizer", "tokenizer_2", "tokenizer_3")
#: Files to download from the hub; pickles only with --allow-pickle.
DOWNLOAD_PATTERNS = ["*.json", "*.txt", "*.model", "*.jinja", "*.safetensors"]
PICKLE_PATTERNS = ["*.bin", "*.ckpt", "*.pt", "*.pth"]


class ModelError(InvalidValue):
    """A checkpoint that cannot be loaded; the text names it and the remedy."""


def resolve(name: str, options: EngineOptions, progress: Progress | None = None) -> Path:
    """Return the folder or file of a model's ``name``, downloaded if it is a hub name. Raises ModelError."""
    path = POCKET if name == "pocket" else Path(name).expanduser()
    if path.is_file() and path.suffix != ".safetensors":
        raise ModelError(f"model {path}: a single file must be .safetensors; convert it, or use a diffusers folder")
    if path.exists():
        return path
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        return _download(name, options, progress)
    raise ModelError(f"model {name!r}: no such folder or file; use pocket, a path or a hub name such as owner/name")


def load_components(path: Path, dtype: torch.dtype, options: EngineOptions) -> dict[str, Any]:
    """Load the checkpoint's components by their diffusers names, and ``scheduler`` and ``index`` as plain settings."""
    return _load_folder(path, dtype, options) if path.is_dir() else _load_single_file(path, dtype, options)


def load_autoencoder(
    name: str,
    architecture: type[Architecture],
    dtype: torch.dtype,
    options: EngineOptions,
    progress: Progress | None = None,
) -> Any:
    """Load the autoencoder called ``name``; ``tiny`` is the one distilled for the architecture. Raises ModelError."""
    import diffusers

    if name == "tiny" and not architecture.tiny_autoencoder:
        raise ModelError(
            f"autoencoder 'tiny': there is none for {architecture.title}; use a folder or a hub name such as owner/name"
        )
    folder = resolve(architecture.tiny_autoencoder if name == "tiny" else name, options, progress)
    config = folder / "config.json"
    if not config.is_file():
        raise ModelError(f"autoencoder {name!r}: no config.json in {folder}; use an autoencoder's diffusers folder")
    class_name = str(json.loads(config.read_text(encoding="utf-8")).get("_class_name", ""))
    if not class_name.startswith("Autoencoder") or not hasattr(diffusers, class_name):
        raise ModelError(
            f"autoencoder {name!r}: class {class_name or '(none)'} is not supported; "
            f"use one that diffusers {diffusers.__version__} has"
        )
    return getattr(diffusers, class_name).from_pretrained(
        folder, **_load_arguments(folder, "diffusers", dtype, options)
    )


def list_weight_files(path: Path) -> list[Path]:
    """Return the weight files that loading ``path`` reads: those of half precision only if there are no others."""
    if path.is_file():
        return [path]
    files = [file for component in COMPONENTS for file in sorted((path / component).glob("*.safetensors"))]
    return [file for file in files if ".fp16." not in file.name] or files


def _download(name: str, options: EngineOptions, progress: Progress | None) -> Path:
    """Return the local copy of a hub repository, downloaded unless it is cached or ``--offline`` is set."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    patterns = DOWNLOAD_PATTERNS + (PICKLE_PATTERNS if options.allow_pickle else [])
    try:
        return Path(
            snapshot_download(
                name,
                # Skip original-format weights next to the folders of a diffusers repository: they are copies.
                allow_patterns=[f"*/{p}" for p in patterns] + ["*.json", "diffusion_pytorch_model*.safetensors"],
                local_files_only=options.offline,
                tqdm_class=_progress_bar(progress),
            )
        )
    except LocalEntryNotFoundError:
        reason, remedy = "the hub is unreachable", "check the network"
        if options.offline:
            reason, remedy = "--offline is set", "start once without it"
        raise ModelError(f"model {name!r} is not downloaded and {reason}; {remedy}, or use a folder") from None
    except HfHubHTTPError as error:
        raise ModelError(
            f"model {name!r}: the hub returned {first_line(error)}; check the name and your access, or use a folder"
        ) from None
    except HFValidationError:
        raise ModelError(
            f"model {name!r} is neither an existing path nor a hub name; use pocket, a path or owner/name"
        ) from None


def _progress_bar(progress: Progress | None) -> Any:
    """Return a class of the hub library's progress bar that also calls ``progress``."""
    from huggingface_hub.utils.tqdm import tqdm

    class Bar(tqdm):
        def update(self, n: float | None = 1) -> bool | None:
            shown: bool | None = super().update(n)
            if progress is not None and self.unit == "B":
                progress(int(self.n), int(self.total or 0))
            return shown

    return Bar


def _load_folder(folder: Path, dtype: torch.dtype, options: EngineOptions) -> dict[str, Any]:
    """Load the components that ``model_index.json`` names, each by its class; no pipeline is built."""
    import diffusers
    import transformers

    index_file = folder / "model_index.json"
    if not index_file.is_file():
        raise ModelError(f"model {folder}: no model_index.json; use a diffusers folder or a .safetensors file")
    index = json.loads(index_file.read_text(encoding="utf-8"))
    libraries = {"diffusers": diffusers, "transformers": transformers}
    components: dict[str, Any] = {"index": index}
    for component in (*COMPONENTS, *TOKENIZERS):
        library, class_name = index.get(component) or ("", "")
        if library not in libraries:
            continue
        loader = getattr(libraries[library], class_name, None)
        if loader is None:
            raise ModelError(
                f"model {folder}: its {component} is a {class_name}, "
                f"which {library} {libraries[library].__version__} does not have; use another model"
            )
        arguments = _load_arguments(folder / component, library, dtype, options)
        components[component] = loader.from_pretrained(folder / component, **arguments)
    config = folder / "scheduler" / "scheduler_config.json"
    components["scheduler"] = json.loads(config.read_text(encoding="utf-8"))
    return components


def _load_arguments(folder: Path, library: str, dtype: torch.dtype, options: EngineOptions) -> dict[str, Any]:
    """Return the arguments of ``from_pretrained`` for one component: dtype, variant, and safetensors or pickle."""
    if folder.name.startswith("tokenizer"):
        return {}
    arguments: dict[str, Any] = {"torch_dtype" if library == "diffusers" else "dtype": dtype}
    files = list(folder.glob("*.safetensors"))
    if not files:
        pickles = [path.name for pattern in PICKLE_PATTERNS for path in folder.glob(pattern)]
        if not pickles:
            raise ModelError(f"model {folder.parent}: {folder.name} has no weights; download the model again")
        if not options.allow_pickle:
            raise ModelError(
                f"model {folder.parent}: {folder.name}/{pickles[0]} is a pickle, which can run any code when loaded; "
                "use a safetensors checkpoint, or --allow-pickle if you trust its author"
            )
        return arguments | {"use_safetensors": False}
    if all(".fp16." in file.name for file in files):
        arguments["variant"] = "fp16"
    return arguments | {"use_safetensors": True}


def _load_single_file(path: Path, dtype: torch.dtype, options: EngineOptions) -> dict[str, Any]:
    """Load the components of an original-format checkpoint, recognized by the names of its weights.

    Their settings and tokenizers come from a folder of the same name next to the file, or else from the hub.
    """
    import diffusers
    from diffusers.loaders.single_file_utils import SingleFileComponentError
    from safetensors import safe_open

    with safe_open(path, "pt") as weights:
        architecture = find_single_file_architecture(weights.keys())
    if architecture is None:
        titles = ", ".join(known.title for known in ARCHITECTURES if known.single_file_key)
        raise ModelError(
            f"model {path}: not recognized as a checkpoint of {titles}; use a diffusers folder (adapters go to /lora)"
        )
    config = path.with_suffix("")
    settings: dict[str, Any] = {"config": str(config)} if config.is_dir() else {}
    settings["local_files_only"] = config.is_dir() or options.offline
    pipeline_class = getattr(diffusers, architecture.single_file_pipeline)
    try:
        pipeline = pipeline_class.from_single_file(str(path), torch_dtype=dtype, **settings)
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


def _check_complete(path: Path, name: str, module: torch.nn.Module) -> None:
    """Raise ModelError if the file had no values for one of the module's weights."""
    if not any(tensor.is_meta for tensor in module.parameters()):
        return
    getattr(module, "tie_weights", lambda: None)()  # a tied tensor is in the file under one of its two names
    missing = next((key for key, tensor in module.named_parameters() if tensor.is_meta), None)
    if missing is not None:
        raise ModelError(f"model {path}: {name} has no {missing}; the file is incomplete, download it again")
