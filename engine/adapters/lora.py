"""LoRA: several low-rank adapters on one model at once, each weight live (Hu et al., arXiv 2106.09685).

W' = W + Σᵢ wᵢ·(αᵢ/rᵢ)·Bᵢ·Aᵢ. The adapters of a layer are stacked along their ranks into one product.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from engine.shared.parameter import InvalidValue

SLOTS = 4
_SIDES = re.compile(
    r"^(?P<layer>.+?)[._](?P<side>lora_A|lora_B|lora_down|lora_up|lora\.down|lora\.up|down|up)(?:\.default)?\.weight$"
)


_TEXT = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}


@dataclass(frozen=True)
class Pair:
    """A layer's update B·A, α/r folded into B. A (r, in) or (r, in, k, k), B (out, r) or (out, r, 1, 1)."""

    A: Tensor
    B: Tensor


#: Part and layer, such as ("unet", "mid_block.attentions.0.proj_in"), → its pair.
Adapter = Mapping[tuple[str, str], Pair]


def read(path: Path, mixin: str, targets: Mapping[str, nn.Module], config: Any = None) -> Adapter:
    """A LoRA file of any common layout, its layers named as the model's. ``mixin`` is the loader class of diffusers that knows them.

    Raises BadValue for what is no LoRA, or none of this model.
    """
    if path.suffix != ".safetensors":
        raise InvalidValue(f"LoRA {path.name}: only .safetensors files are read")
    try:
        weights, told, settings = _weights(path, mixin, config)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise InvalidValue(f"LoRA {path.name} cannot be read: {str(error).splitlines()[0]}") from None
    alphas: dict[tuple[str, str], float] = {}
    for key, value in told.items():
        part, _, name = key.partition(".")
        if part in targets:
            match = _SIDES.match(name)
            alphas[part, _own_name(targets[part], match["layer"] if match else name)] = value
    found: dict[tuple[str, str], dict[str, Tensor]] = {}
    odd = 0
    for key, tensor in weights.items():
        part, _, name = key.partition(".")
        match = _SIDES.match(name)
        if match is None or part not in targets:
            odd += not key.endswith(".alpha")
            continue
        side = "A" if match["side"].endswith(("A", "down")) else "B"
        found.setdefault((part, _own_name(targets[part], match["layer"])), {})[side] = tensor
    if not found:
        raise InvalidValue(f"LoRA {path.name} holds no LoRA layers for this model")
    adapter = {}
    for (part, layer), sides in found.items():
        module = _layer(targets[part], layer)
        if module is None or len(sides) != 2:
            raise InvalidValue(f"LoRA {path.name} is for another model: it has {part}.{layer}, which this one has not")
        alpha = next((v for key, v in alphas.items() if key == (part, layer)), settings.get(f"{part}.lora_alpha"))
        adapter[part, layer] = _pair(path.name, layer, module, sides["A"], sides["B"], alpha)
    if odd:
        raise InvalidValue(
            f"LoRA {path.name} holds {odd} weights that are no plain LoRA (DoRA, LoHa, LoKr …), which is not supported"
        )
    return adapter


def _weights(path: Path, mixin: str, config: Any) -> tuple[dict[str, Tensor], dict[str, float], dict[str, Any]]:
    """The file under diffusers' names, the alphas that it gives by layer, and the settings that it carries."""
    from diffusers.loaders import lora_pipeline

    loader = getattr(lora_pipeline, mixin)
    options: dict[str, Any] = {"return_lora_metadata": True, "use_safetensors": True, "local_files_only": True}
    if mixin.startswith("Stable"):
        options["unet_config"] = config
    if mixin == "FluxLoraLoaderMixin":
        options["return_alphas"] = True
    answer = loader.lora_state_dict(str(path), **options)
    *rest, metadata = answer if isinstance(answer, tuple) else (answer, None)
    alphas = {
        key.removesuffix(".alpha"): float(value)
        for key, value in (rest[1] if len(rest) > 1 and rest[1] else {}).items()
    }
    settings = {key: json.loads(value) if isinstance(value, str) else value for key, value in (metadata or {}).items()}
    return rest[0], alphas, settings


def _own_name(target: nn.Module, layer: str) -> str:
    """``layer`` as the model calls it: files name an attention's processor, leave out the ``.0`` of its output, or use a U-Net's words in a
    text encoder, whose own layers may lie in a ``text_model`` or not.
    """
    layer = layer.replace(".processor.", ".").removesuffix("_lora").removesuffix(".lora")
    head, _, last = layer.rpartition(".")
    names = [layer, f"{layer}.0", f"{head}.{_TEXT.get(last, last)}"]
    names += [
        name.removeprefix("text_model.") if name.startswith("text_model.") else f"text_model.{name}" for name in names
    ]
    return next((name for name in names if _layer(target, name) is not None), layer)


def _layer(target: nn.Module, name: str) -> nn.Linear | nn.Conv2d | None:
    try:
        found = target.get_submodule(name)
    except AttributeError:
        return None
    return found if isinstance(found, nn.Linear | nn.Conv2d) else None


def _pair(file: str, layer: str, module: nn.Linear | nn.Conv2d, A: Tensor, B: Tensor, alpha: float | None) -> Pair:
    weight = module.weight
    if isinstance(module, nn.Linear):
        A, B = A.flatten(1), B.flatten(1)
    elif A.dim() == 2:
        A, B = A[..., None, None], B[..., None, None]
    if (B.shape[0], *A.shape[1:]) != tuple(weight.shape) or A.shape[0] != B.shape[1]:
        raise InvalidValue(f"LoRA {file} is for another model: {layer} is {tuple(weight.shape)} here")
    B = B * ((alpha if alpha is not None else len(A)) / len(A))
    return Pair(A.to(weight.device, weight.dtype), B.to(weight.device, weight.dtype))


class Loras:
    """The adapters on one model. ``install`` puts a new set on at once; ``weigh`` sets their weights. Both belong to the frame loop.
    ``changed`` is called after the model's weights became others.

    What is added goes into the layers' own weights, in place: a frame costs what it costs without, and nothing is compiled again.
    """

    def __init__(self, targets: Mapping[str, nn.Module], changed: Callable[[], None] = lambda: None) -> None:
        self._targets, self._changed = targets, changed
        self._layers: list[_Merged] = []
        self.weights: tuple[float, ...] = ()

    @torch.inference_mode()
    def install(self, adapters: Sequence[Adapter | None]) -> None:
        """Puts ``adapters`` in the place of those before, all at weight 0; None leaves a slot empty."""
        for layer in self._layers:
            layer.restore()
        self._layers, self.weights = [], ()
        self._changed()
        for part, name in dict.fromkeys(key for adapter in adapters if adapter for key in adapter):
            module = _layer(self._targets[part], name)
            assert module is not None
            self._layers.append(
                _Merged(module, {i: a[part, name] for i, a in enumerate(adapters) if a and (part, name) in a})
            )

    @torch.inference_mode()
    def weigh(self, weights: Sequence[float]) -> None:
        """Sets the weight of each slot. All at 0 is as if there were none."""
        if tuple(weights) != self.weights:
            for layer in self._layers:
                layer.weigh(weights)
            self._changed()
        self.weights = tuple(weights)


class _Merged:
    """One layer with its pairs stacked along their ranks, and its own weight as it was."""

    def __init__(self, module: nn.Linear | nn.Conv2d, pairs: Mapping[int, Pair]) -> None:
        self._weight = module.weight
        self._own = module.weight.detach().flatten(1).clone()
        self._A = torch.cat([pair.A.flatten(1) for pair in pairs.values()])
        self._B = torch.cat([pair.B.flatten(1) for pair in pairs.values()], 1)
        self._slots = [slot for slot, pair in pairs.items() for _ in range(len(pair.A))]

    def weigh(self, weights: Sequence[float]) -> None:
        scales = torch.tensor([weights[slot] for slot in self._slots]).to(self._B)
        self._weight.copy_(torch.addmm(self._own, self._B * scales, self._A).view(self._weight.shape))

    def restore(self) -> None:
        self._weight.copy_(self._own.view(self._weight.shape))
