"""LoRA files of every common layout, read under the model's own layer names (Hu et al., arXiv 2106.09685)."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from engine.models.component_files import read_shapes
from engine.models.model_error import reading
from engine.runtime.device_lock import device_lock, split_into_chunks
from engine.shared.parameter import InvalidValue

_FACTOR = re.compile(
    r"^(?P<layer>.+?)[._](?P<factor>lora_A|lora_B|lora_down|lora_up|lora\.down|lora\.up|down|up)(?:\.default)?\.weight$"
)
#: A U-Net's names for an attention's layers → a text encoder's.
_TEXT_ENCODER_NAMES = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}

#: Parts of weights' names by which other kinds of adapters are told apart.
_OTHER_TYPES = {
    ".dora_scale": "DoRA",
    ".lora_magnitude_vector": "DoRA",
    ".hada_w": "LoHa",
    ".lokr_w": "LoKr",
    ".lora_mid": "Tucker",
    ".w_norm": "norm layer",
    ".b_norm": "norm layer",
    ".diff.": "full difference",
    ".diff_b.": "full difference",
}

Layer = nn.Linear | nn.Conv2d


@dataclass(frozen=True)
class LowRankUpdate:
    """A layer's update B·A, with α/r folded into B. A is (r, in) or (r, in, k, k), B (out, r) or (out, r, 1, 1)."""

    A: Tensor
    B: Tensor


#: Component and layer, such as ("unet", "mid_block.attentions.0.proj_in"), → its update.
LoraUpdates = Mapping[tuple[str, str], LowRankUpdate]


def read_lora(path: Path, mixin: str, components: Mapping[str, nn.Module], config: Any = None) -> LoraUpdates:
    """Read a LoRA file for the model's ``components``; ``mixin`` is the loader class of diffusers for its layout.

    Raises InvalidValue for a file that is not a LoRA, or one for another model.
    """
    if path.suffix != ".safetensors":
        raise InvalidValue(f"LoRA {path.name}: only .safetensors files are read")
    with reading(f"LoRA {path.name}"):
        _reject_other_types(path, read_shapes(path))  # also finds a damaged header, before a library does
        weights, file_alphas, metadata = _load_weights(path, mixin, config)
    alphas: dict[tuple[str, str], float] = {}
    for key, value in file_alphas.items():
        component, _, name = key.partition(".")
        if component in components:
            match = _FACTOR.match(name)
            alphas[component, _resolve_layer_name(components[component], match["layer"] if match else name)] = value
    factors: dict[tuple[str, str], dict[str, Tensor]] = {}
    unknown = 0
    for key, tensor in weights.items():
        component, _, name = key.partition(".")
        match = _FACTOR.match(name)
        if match is None or component not in components:
            unknown += not key.endswith(".alpha")
            continue
        factor = "A" if match["factor"].endswith(("A", "down")) else "B"
        layer = _resolve_layer_name(components[component], match["layer"])
        factors.setdefault((component, layer), {})[factor] = tensor
    if not factors:
        raise InvalidValue(f"LoRA {path.name} holds no LoRA layers for this model")
    updates = {}
    for (component, layer), pair in factors.items():
        module = get_layer(components[component], layer)
        if module is None or len(pair) != 2:
            raise InvalidValue(
                f"LoRA {path.name} is for another model: it has {component}.{layer}, which this one lacks"
            )
        alpha = alphas.get((component, layer), metadata.get(f"{component}.lora_alpha"))
        updates[component, layer] = _build_update(path.name, layer, module, pair["A"], pair["B"], alpha)
    if unknown:
        raise InvalidValue(
            f"LoRA {path.name} holds {unknown} weights of another kind (DoRA, LoHa, LoKr …), which is not supported"
        )
    return _place(updates, next(components[component].parameters()).device)


def _reject_other_types(path: Path, keys: Iterable[str]) -> None:
    """Raise InvalidValue for a file with updates that are no plain low-rank products."""
    types = {name for key in keys for part, name in _OTHER_TYPES.items() if part in f"{key}."}
    if types:
        raise InvalidValue(f"LoRA {path.name} holds {' and '.join(sorted(types))} weights, which are not supported")


def get_layer(component: nn.Module, name: str) -> Layer | None:
    """Return the layer called ``name`` where it exists and can take a LoRA."""
    try:
        layer = component.get_submodule(name)
    except AttributeError:
        return None
    return layer if isinstance(layer, Layer) else None


def _load_weights(path: Path, mixin: str, config: Any) -> tuple[dict[str, Tensor], dict[str, float], dict[str, Any]]:
    """Return the file's weights under diffusers' names, its alphas by layer, and its metadata."""
    from diffusers.loaders import lora_pipeline

    loader = getattr(lora_pipeline, mixin)
    options: dict[str, Any] = {"return_lora_metadata": True, "use_safetensors": True, "local_files_only": True}
    if mixin.startswith("Stable"):
        options["unet_config"] = config
    if mixin == "FluxLoraLoaderMixin":
        options["return_alphas"] = True
    answer = loader.lora_state_dict(str(path), **options)
    *rest, metadata = answer if isinstance(answer, tuple) else (answer, None)
    alphas = rest[1] if len(rest) > 1 and rest[1] else {}
    return (
        rest[0],
        {key.removesuffix(".alpha"): float(value) for key, value in alphas.items()},
        {key: json.loads(value) if isinstance(value, str) else value for key, value in (metadata or {}).items()},
    )


def _resolve_layer_name(component: nn.Module, layer: str) -> str:
    """Return ``layer`` under the component's own name.

    Files name an attention's processor, leave out the ``.0`` of its output, or use a U-Net's names in a text encoder,
    whose layers may or may not lie in a ``text_model``.
    """
    layer = layer.replace(".processor.", ".").removesuffix("_lora").removesuffix(".lora")
    head, _, last = layer.rpartition(".")
    names = [layer, f"{layer}.0", f"{head}.{_TEXT_ENCODER_NAMES.get(last, last)}"]
    prefix = "text_model."
    names += [name.removeprefix(prefix) if name.startswith(prefix) else f"{prefix}{name}" for name in names]
    return next((name for name in names if get_layer(component, name) is not None), layer)


def _build_update(file: str, name: str, layer: Layer, A: Tensor, B: Tensor, alpha: float | None) -> LowRankUpdate:
    weight = layer.weight
    A, B = A.float(), B.float()  # a float8 file cannot be multiplied
    if isinstance(layer, nn.Linear):
        A, B = A.flatten(1), B.flatten(1)
    elif A.dim() == 2:
        A, B = A[..., None, None], B[..., None, None]
    if (B.shape[0], *A.shape[1:]) != tuple(weight.shape) or A.shape[0] != B.shape[1]:
        raise InvalidValue(f"LoRA {file} is for another model: {name} is {tuple(weight.shape)} here")
    if not (bool(A.isfinite().all()) and bool(B.isfinite().all())):
        raise InvalidValue(f"LoRA {file} holds NaN or infinity in {name}")
    B = B * ((alpha if alpha is not None else len(A)) / len(A))
    return LowRankUpdate(A.to(weight.dtype), B.to(weight.dtype))


def _place(updates: LoraUpdates, device: torch.device) -> LoraUpdates:
    """Move updates to the model's device, some at a time."""
    placed = {}
    for group in split_into_chunks(updates.items(), lambda item: item[1].A.nbytes + item[1].B.nbytes):
        with device_lock(device):
            placed.update({key: LowRankUpdate(update.A.to(device), update.B.to(device)) for key, update in group})
    return placed
