"""From a name to a ``Model``: the pocket model, a diffusers folder, a single file, or a name on the hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from engine.models.model import Model
from engine.models.prompts import prompt_encoder
from engine.parameters import BadValue
from engine.schedule import Noising

POCKET = Path(__file__).parent.parent / "pocket" / "model"
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class ModelError(BadValue):
    """A checkpoint that cannot be loaded; the text names it and the mend."""


def pick_device(name: str = "auto") -> torch.device:
    """The device called ``name``; for auto the first of CUDA, MPS and CPU that this machine has. Raises ModelError."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ModelError(f"device {name!r} cannot be used here ({reason}); try --device auto") from None
    return device


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype called ``name``; auto is float16 on a GPU, and on a CPU bfloat16 where its instructions are there, else float32."""
    if name != "auto":
        return _DTYPES[name]
    if device.type != "cpu":
        return torch.float16
    return torch.bfloat16 if torch.ops.mkldnn._is_mkldnn_bf16_supported() else torch.float32


def load(name: str, device: torch.device, dtype: torch.dtype) -> Model:
    """Loads the checkpoint called ``name``. Raises ModelError where it is missing, broken or of a kind that is not supported."""
    path = POCKET if name == "pocket" else Path(name).expanduser()
    _quiet()
    try:
        if path.is_dir():
            parts = _from_folder(path, dtype)
        elif path.is_file():
            parts = _from_single_file(path, dtype)
        elif name.count("/") == 1 and not name.startswith((".", "/", "~")):
            parts = _from_folder(_downloaded(name), dtype)
        else:
            raise ModelError(f"model {name!r}: no such folder or file; give pocket, a path or a hub name such as owner/name")
        return _assemble(name, parts, device, dtype)
    except BadValue:
        raise
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ModelError(f"model {name!r} cannot be loaded: {reason[0]}") from error


def _quiet() -> None:
    """One clear line of ours is enough: the libraries' bars and hints stay off the terminal."""
    import diffusers
    import transformers

    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()


def _downloaded(name: str) -> Path:
    """The local copy of a hub repository, fetched where it is not cached."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    patterns = ["*.json", "*.txt", "*.safetensors", "*.model"]
    try:
        return Path(snapshot_download(name, allow_patterns=patterns))
    except LocalEntryNotFoundError:
        raise ModelError(f"model {name!r} is not downloaded and the hub cannot be reached; go online once, or give a folder") from None
    except HfHubHTTPError as error:
        raise ModelError(f"model {name!r}: the hub answered {str(error).splitlines()[0]}") from None


def _from_folder(folder: Path, dtype: torch.dtype) -> dict[str, Any]:
    """The components that ``model_index.json`` names, each loaded by its own class: no pipeline is built."""
    import diffusers
    import transformers

    index_file = folder / "model_index.json"
    if not index_file.is_file():
        raise ModelError(f"model {folder}: no model_index.json, so this is no diffusers folder")
    index = json.loads(index_file.read_text(encoding="utf-8"))
    libraries = {"diffusers": diffusers, "transformers": transformers}
    parts: dict[str, Any] = {}
    for part in ("unet", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"):
        library, name = index.get(part) or ("", "")
        if library not in libraries:
            continue
        options: dict[str, Any] = {} if part.startswith("tokenizer") else {"torch_dtype" if library == "diffusers" else "dtype": dtype}
        plain = list((folder / part).glob("diffusion_pytorch_model*.safetensors")) or library != "diffusers"
        if not plain and list((folder / part).glob("*.fp16.safetensors")):
            options["variant"] = "fp16"
        parts[part] = getattr(libraries[library], name).from_pretrained(folder / part, **options)
    config = folder / "scheduler" / "scheduler_config.json"
    parts["scheduler"] = json.loads(config.read_text(encoding="utf-8"))
    return parts


def _from_single_file(path: Path, dtype: torch.dtype) -> dict[str, Any]:
    """The components of an original-format checkpoint; its configuration is recognised from its weights."""
    from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
    from safetensors import safe_open

    if path.suffix != ".safetensors":
        raise ModelError(f"model {path}: a single file must be .safetensors")
    with safe_open(path, "pt") as weights:
        large = any(key.startswith("conditioner.embedders.1") for key in weights.keys())  # noqa: SIM118
    kind = StableDiffusionXLPipeline if large else StableDiffusionPipeline
    pipeline = kind.from_single_file(str(path), torch_dtype=dtype)
    parts = {k: v for k, v in pipeline.components.items() if v is not None}
    parts["scheduler"] = dict(pipeline.scheduler.config) | {"_class_name": type(pipeline.scheduler).__name__}
    return parts


def _assemble(name: str, parts: dict[str, Any], device: torch.device, dtype: torch.dtype) -> Model:
    missing = [part for part in ("unet", "vae", "text_encoder", "tokenizer") if part not in parts]
    if missing:
        raise ModelError(f"model {name!r} has no {', '.join(missing)}; only U-Net checkpoints (SD, SDXL, LCM, turbo) are supported")
    for part in ("unet", "vae", "text_encoder", "text_encoder_2"):
        if part in parts:
            parts[part].to(device).requires_grad_(False).eval()
    for part in ("unet", "vae"):
        parts[part].to(memory_format=torch.channels_last)
    return Model(name, parts["unet"], parts["vae"], prompt_encoder(parts, device), noising(parts["scheduler"]), device, dtype)


def noising(config: dict[str, Any]) -> Noising:
    """The noise schedule of a scheduler's config. Raises ModelError for a kind that is not supported."""
    kind = str(config.get("_class_name", ""))
    if kind.startswith("FlowMatch"):
        return Noising("flow", shift=float(config.get("shift", 1.0)))
    prediction = {"epsilon": "epsilon", "v_prediction": "v"}.get(str(config.get("prediction_type", "epsilon")))
    if prediction is None:
        raise ModelError(f"prediction type {config.get('prediction_type')!r} is not supported")
    total, start, end = int(config["num_train_timesteps"]), float(config["beta_start"]), float(config["beta_end"])
    schedule = config.get("beta_schedule", "linear")
    if schedule == "scaled_linear":
        betas = torch.linspace(start**0.5, end**0.5, total, dtype=torch.float64) ** 2
    elif schedule == "linear":
        betas = torch.linspace(start, end, total, dtype=torch.float64)
    else:
        raise ModelError(f"beta schedule {schedule!r} is not supported")
    consistency = kind == "LCMScheduler"
    scaling = float(config.get("timestep_scaling", 10.0))
    return Noising(prediction, torch.cumprod(1.0 - betas, 0), consistency, timestep_scaling=scaling)
