"""Components of a checkpoint: one class each from a list of ours, loaded from a local folder after checks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from engine.models import architectures
from engine.models.component_files import check_texts, count_elements, find_weights, read_config
from engine.models.declared_size import check_declared
from engine.models.model_error import ModelError

DENOISERS = ("unet", "transformer")
TEXT_ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")
COMPONENTS = (*DENOISERS, "vae", *TEXT_ENCODERS)
TOKENIZERS = ("tokenizer", "tokenizer_2", "tokenizer_3")
AUTOENCODER_CLASSES = frozenset(
    {"AutoencoderKL", "AutoencoderTiny", "AutoencoderDC", "AutoencoderKLFlux2", "AsymmetricAutoencoderKL"}
)
#: Classes of text encoders and tokenizers in transformers. An architecture that needs another adds it here.
TEXT_ENCODER_CLASSES = frozenset(
    {"CLIPTextModel", "CLIPTextModelWithProjection", "T5EncoderModel", "UMT5EncoderModel"}
    | {"GemmaModel", "GemmaForCausalLM", "Gemma2Model", "Gemma2ForCausalLM", "Qwen3Model", "Qwen3ForCausalLM"}
)
TOKENIZER_CLASSES = frozenset(
    {"CLIPTokenizer", "CLIPTokenizerFast", "T5Tokenizer", "T5TokenizerFast", "GemmaTokenizer", "GemmaTokenizerFast"}
    | {"Qwen2Tokenizer", "Qwen2TokenizerFast", "PreTrainedTokenizerFast", "TokenizersBackend"}
    | {"LlamaTokenizer", "LlamaTokenizerFast"}
)
#: Depth models of transformers by the ``model_type`` of their configs.
DEPTH_CLASSES: Mapping[str, str] = {
    "depth_anything": "DepthAnythingForDepthEstimation",
    "dpt": "DPTForDepthEstimation",
    "glpn": "GLPNForDepthEstimation",
    "prompt_depth_anything": "PromptDepthAnythingForDepthEstimation",
    "zoedepth": "ZoeDepthForDepthEstimation",
}


def supported_classes(component: str) -> tuple[str, frozenset[str]]:
    """Return the library of a component and the names of its classes that are supported."""
    if component in TOKENIZERS:
        return "transformers", TOKENIZER_CLASSES
    if component in TEXT_ENCODERS:
        return "transformers", TEXT_ENCODER_CLASSES
    if component == "vae":
        return "diffusers", AUTOENCODER_CLASSES
    known = architectures.ARCHITECTURES
    return "diffusers", frozenset(kind.denoiser_class for kind in known if kind.denoiser_component == component)


def read_class(entry: object, component: str, what: str) -> Any:
    """Return the class that an index names for a component, None for none.

    Raises ModelError that begins with ``what`` for one that is not in the list: an index is a user's file.
    """
    if entry is None or entry == [None, None]:
        return None
    if not (isinstance(entry, list) and len(entry) == 2 and all(isinstance(name, str) for name in entry)):
        raise ModelError(f"{what}: model_index.json names no class for {component}; download the model again")
    library, name = entry
    supported_library, names = supported_classes(component)
    if library != supported_library or name not in names:
        kind = "denoiser" if component in DENOISERS else component
        origin = "" if library == supported_library else f" of {library[:80]!r}"
        raise ModelError(f"{what}: {kind} {name[:80]}{origin} is not supported; use another model")
    return get_class(library, name, what)


def get_class(library: str, name: str, what: str) -> Any:
    """Return a class of diffusers or transformers. Raises ModelError where the installed version lacks it."""
    import diffusers
    import transformers

    module = {"diffusers": diffusers, "transformers": transformers}[library]
    component_class = getattr(module, name, None)
    if component_class is None:
        raise ModelError(f"{what}: {library} {module.__version__} has no {name}; install a newer one")
    return component_class


def load_tokenizer(tokenizer_class: Any, folder: Path) -> Any:
    """Load the tokenizer in a local folder."""
    check_texts(folder)
    return tokenizer_class.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)


def load_module(module_class: Any, folder: Path, dtype: torch.dtype, what: str, allow_pickle: bool = False) -> Any:
    """Load a module of diffusers or transformers from a local folder.

    No code of the folder runs, nothing is downloaded, and nothing is allocated that its files do not hold. Raises
    ModelError that begins with ``what``, and whatever the library raises.
    """
    files = find_weights(folder, allow_pickle, what)
    config, is_diffusers = read_config(folder / "config.json"), module_class.__module__.startswith("diffusers.")
    check_class_name(config.get("_class_name"), module_class, what)
    check_declared(lambda: build_empty(module_class, config), count_elements(files))
    arguments: dict[str, Any] = {"local_files_only": True, "use_safetensors": files[0].suffix == ".safetensors"}
    if all(".fp16." in file.name for file in files):
        arguments["variant"] = "fp16"
    if is_diffusers:
        return module_class.from_pretrained(str(folder), torch_dtype=dtype, **arguments)
    module, report = module_class.from_pretrained(
        str(folder), dtype=dtype, trust_remote_code=False, weights_only=True, output_loading_info=True, **arguments
    )
    if missing := sorted(report["missing_keys"]):  # transformers would make them up
        raise ModelError(f"{what} {folder.name} has no {missing[0]}; its weights are incomplete, download them again")
    return module


def build_empty(module_class: Any, config: dict[str, Any]) -> Any:
    """Build a module of random weights from its config."""
    if module_class.__module__.startswith("diffusers."):
        return module_class.from_config(config)
    return module_class(module_class.config_class.from_dict(dict(config)))


def check_class_name(name: object, module_class: Any, what: str) -> None:
    """Raise ModelError where a config is for another class than ``module_class``."""
    if name is not None and name != module_class.__name__:
        raise ModelError(f"{what}: a config for {str(name)[:80]} in place of {module_class.__name__}")
