"""Where a checkpoint comes from: a diffusers folder, a name on the hub, or one original-format file → its parts."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from engine.shared.options import EngineOptions
from engine.shared.parameter import InvalidValue

log = logging.getLogger(__name__)
#: Told how far a download is: bytes so far and in all.
Progress = Callable[[int, int], None]
POCKET = Path(__file__).parent.parent / "pocket" / "model"
COMPONENTS = ("unet", "transformer", "vae", "text_encoder", "text_encoder_2", "text_encoder_3")
TOKENIZERS = ("tokenizer", "tokenizer_2", "tokenizer_3")
#: Class of the family → the tiny autoencoder that was distilled for its latents (github.com/madebyollin/taesd).
TINY = {
    "StableDiffusion": "madebyollin/taesd",
    "StableDiffusionXL": "madebyollin/taesdxl",
    "StableDiffusion3": "madebyollin/taesd3",
    "Flux": "madebyollin/taef1",
    "Lumina2": "madebyollin/taef1",
}
#: What is fetched from the hub; pickles only where they are allowed.
FETCHED = ["*.json", "*.txt", "*.model", "*.jinja", "*.safetensors"]
PICKLES = ["*.bin", "*.ckpt", "*.pt", "*.pth"]


class ModelError(InvalidValue):
    """A checkpoint that cannot be loaded; the text names it and the mend."""


def resolve(name: str, options: EngineOptions, progress: Progress | None = None) -> Path:
    """The folder or file that ``name`` stands for, downloaded where it is a hub name. Raises ModelError where there is none."""
    path = POCKET if name == "pocket" else Path(name).expanduser()
    if path.is_file() and path.suffix != ".safetensors":
        raise ModelError(f"model {path}: a single file must be .safetensors")
    if path.exists():
        return path
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        return _downloaded(name, options, progress)
    raise ModelError(f"model {name!r}: no such folder or file; give pocket, a path or a hub name such as owner/name")


def load_components(path: Path, dtype: torch.dtype, options: EngineOptions) -> dict[str, Any]:
    """The checkpoint's components by their diffusers names, with ``scheduler`` and ``index`` as plain settings."""
    return _from_folder(path, dtype, options) if path.is_dir() else _from_single_file(path, dtype, options)


def load_autoencoder(
    name: str, family: str, dtype: torch.dtype, options: EngineOptions, progress: Progress | None = None
) -> Any:
    """The autoencoder called ``name``; ``tiny`` is the one that was distilled for a family of that class. Raises ModelError."""
    import diffusers

    if name == "tiny" and family not in TINY:
        raise ModelError(f"autoencoder tiny: none is known for {family}; give a folder or a hub name")
    folder = resolve(TINY[family] if name == "tiny" else name, options, progress)
    config = folder / "config.json"
    if not config.is_file():
        raise ModelError(f"autoencoder {name!r}: no config.json, so this is no diffusers folder of one")
    kind = str(json.loads(config.read_text(encoding="utf-8")).get("_class_name", ""))
    if not kind.startswith("Autoencoder") or not hasattr(diffusers, kind):
        raise ModelError(f"autoencoder {name!r} is a {kind or 'nameless class'}, which is none that is known here")
    return getattr(diffusers, kind).from_pretrained(folder, **_arguments(folder, "diffusers", dtype, options))


def weight_files(path: Path) -> list[Path]:
    """The weight files that loading ``path`` would read, the plain ones where there are several variants."""
    if path.is_file():
        return [path]
    files = [file for part in COMPONENTS for file in sorted((path / part).glob("*.safetensors"))]
    plain = [file for file in files if ".fp16." not in file.name]
    return plain or files


def _downloaded(name: str, options: EngineOptions, progress: Progress | None) -> Path:
    """The local copy of a hub repository, fetched where it is not cached; ``--offline`` takes the cache alone."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    patterns = FETCHED + (PICKLES if options.allow_pickle else [])
    try:
        return Path(
            snapshot_download(
                name,
                # Original-format weights lie beside the folders of a diffusers repository: twice the bytes for nothing.
                allow_patterns=[f"*/{p}" for p in patterns] + ["*.json", "diffusion_pytorch_model*.safetensors"],
                local_files_only=options.offline,
                tqdm_class=_bar(progress),
            )
        )
    except LocalEntryNotFoundError:
        mend = "start once without --offline" if options.offline else "go online once"
        reason = "" if options.offline else " and the hub cannot be reached"
        raise ModelError(f"model {name!r} is not downloaded{reason}; {mend}, or give a folder") from None
    except HfHubHTTPError as error:
        raise ModelError(f"model {name!r}: the hub answered {str(error).splitlines()[0]}") from None
    except HFValidationError:
        raise ModelError(f"model {name!r} is neither a path that exists nor a hub name such as owner/name") from None


def _bar(progress: Progress | None) -> Any:
    """The hub library's progress bar, which also tells ``progress``."""
    from huggingface_hub.utils.tqdm import tqdm

    class Bar(tqdm):
        def update(self, n: float | None = 1) -> bool | None:
            shown: bool | None = super().update(n)
            if progress is not None and self.unit == "B":
                progress(int(self.n), int(self.total or 0))
            return shown

    return Bar


def _from_folder(folder: Path, dtype: torch.dtype, options: EngineOptions) -> dict[str, Any]:
    """The components that ``model_index.json`` names, each loaded by its own class: no pipeline is built."""
    import diffusers
    import transformers

    index_file = folder / "model_index.json"
    if not index_file.is_file():
        raise ModelError(f"model {folder}: no model_index.json, so this is no diffusers folder")
    index = json.loads(index_file.read_text(encoding="utf-8"))
    libraries = {"diffusers": diffusers, "transformers": transformers}
    parts: dict[str, Any] = {"index": index}
    for part in (*COMPONENTS, *TOKENIZERS):
        library, name = index.get(part) or ("", "")
        if library not in libraries:
            continue
        kind = getattr(libraries[library], name, None)
        if kind is None:
            raise ModelError(f"model {folder}: its {part} is a {name}, which the installed {library} does not have")
        parts[part] = kind.from_pretrained(folder / part, **_arguments(folder / part, library, dtype, options))
    config = folder / "scheduler" / "scheduler_config.json"
    parts["scheduler"] = json.loads(config.read_text(encoding="utf-8"))
    return parts


def _arguments(folder: Path, library: str, dtype: torch.dtype, options: EngineOptions) -> dict[str, Any]:
    """How one part is loaded: its dtype, the half-precision files where there are no others, and no pickles unless allowed."""
    if folder.name.startswith("tokenizer"):
        return {}
    arguments: dict[str, Any] = {"torch_dtype" if library == "diffusers" else "dtype": dtype}
    files = list(folder.glob("*.safetensors"))
    if not files:
        pickled = [path.name for pattern in PICKLES for path in folder.glob(pattern)]
        if not pickled:
            raise ModelError(f"model {folder.parent}: its {folder.name} has no weights; the download may be incomplete")
        if not options.allow_pickle:
            raise ModelError(
                f"model {folder.parent}: {folder.name}/{pickled[0]} is a pickle, which can run any code when it is read; "
                "give a safetensors checkpoint, or --allow-pickle if you trust its maker"
            )
        return arguments | {"use_safetensors": False}
    if all(".fp16." in file.name for file in files):
        arguments["variant"] = "fp16"
    return arguments | {"use_safetensors": True}


def _from_single_file(path: Path, dtype: torch.dtype, options: EngineOptions) -> dict[str, Any]:
    """The components of an original-format checkpoint, recognised from its weights.

    Their settings and tokenizers come from a folder of the same name beside the file where there is one, else from the hub.
    """
    import diffusers
    from diffusers.loaders.single_file_utils import SingleFileComponentError
    from safetensors import safe_open

    with safe_open(path, "pt") as weights:
        keys = list(weights.keys())
    kinds = {
        "model.diffusion_model.joint_blocks.": "StableDiffusion3Pipeline",
        "conditioner.embedders.1.": "StableDiffusionXLPipeline",
        "model.diffusion_model.input_blocks.": "StableDiffusionPipeline",
    }
    found = next((kind for start, kind in kinds.items() if any(key.startswith(start) for key in keys)), None)
    if found is None:
        raise ModelError(
            f"model {path}: not recognised as SD, SDXL or SD3; give a diffusers folder (an adapter goes to /lora)"
        )
    beside = path.with_suffix("")
    settings: dict[str, Any] = {"config": str(beside)} if beside.is_dir() else {}
    settings["local_files_only"] = beside.is_dir() or options.offline
    try:
        pipeline = getattr(diffusers, found).from_single_file(str(path), torch_dtype=dtype, **settings)
    except SingleFileComponentError as error:
        absent = str(error).split(".from_pretrained")[0].split("\n")[-1].split(" ")[0]
        raise ModelError(
            f"model {path}: its {absent} is not in the file; give the diffusers folder of this model instead"
        ) from None
    parts = {name: part for name, part in pipeline.components.items() if part is not None}
    for name, part in parts.items():
        if isinstance(part, torch.nn.Module) and any(tensor.is_meta for tensor in part.parameters()):
            getattr(part, "tie_weights", lambda: None)()  # two names of one tensor, of which the file has one
            lacking = next((key for key, tensor in part.named_parameters() if tensor.is_meta), None)
            if lacking is not None:
                raise ModelError(f"model {path}: {name} has no {lacking}; the file is incomplete")
    parts["scheduler"] = dict(pipeline.scheduler.config) | {"_class_name": type(pipeline.scheduler).__name__}
    parts["index"] = dict(pipeline.config)
    return parts
