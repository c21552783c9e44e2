"""U-Nets whose deep levels are left out, against diffusers' own U-Net with the same features put in their place."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from engine.bench.small_weights import WIDTH, unet
from engine.models.regional.unet import DeepCachedUNet

THREE_LEVELS: dict[str, Any] = {
    "block_out_channels": (16, 32, 48),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
}
SDXL: dict[str, Any] = {
    "addition_embed_type": "text_time", "addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 96,
}  # fmt: skip
#: Name → settings of a U-Net, and the number of its up blocks that are deep.
UNETS: dict[str, tuple[dict[str, Any], int]] = {
    "two levels": ({}, 1),
    "three levels": (THREE_LEVELS, 1),
    "guidance-distilled": ({"time_cond_proj_dim": 16}, 1),
    "sdxl": (THREE_LEVELS | SDXL, 1),
    "text embedding": (THREE_LEVELS | {"addition_embed_type": "text", "addition_embed_type_num_heads": 2}, 1),
}


def build(settings: dict[str, Any]) -> UNet2DConditionModel:
    torch.manual_seed(1)
    config = {key: value for key, value in unet().config.items() if not key.startswith("_")} | settings
    module: UNet2DConditionModel = UNet2DConditionModel.from_config(config).eval().requires_grad_(False)
    return module


def make_inputs(settings: dict[str, Any], seed: int, height: int, width: int) -> tuple[Tensor, Tensor, Tensor, Any]:
    generator = torch.Generator().manual_seed(seed)
    extra: dict[str, Any] = {}
    if "time_cond_proj_dim" in settings:
        extra["timestep_cond"] = torch.randn(2, 16, generator=generator)
    if "addition_time_embed_dim" in settings:
        pooled, ids = torch.randn(2, 48, generator=generator), torch.full((2, 6), 64.0)
        extra["added_cond_kwargs"] = {"text_embeds": pooled, "time_ids": ids}
    x = torch.randn(2, 4, height, width, generator=generator)
    return x, torch.tensor([300.0, 700.0]), torch.randn(2, 5, WIDTH, generator=generator), extra


def run_diffusers(module: UNet2DConditionModel, inputs: Any, deep: int, features: Tensor | None = None) -> Any:
    """Return the output and the result of the last deep up block; ``features`` replace that result."""
    seen: list[Tensor] = []

    def put(_block: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        seen.append(output)
        return output if features is None else features

    hook = module.up_blocks[deep - 1].register_forward_hook(put)
    x, t, tokens, extra = inputs
    output = module(x, t, tokens, return_dict=False, **extra)[0]
    hook.remove()
    return output, seen[0]


@pytest.mark.parametrize("size", [(16, 16), (7, 10)])
@pytest.mark.parametrize("name", UNETS)
def test_reused_features_give_what_they_give_in_diffusers(name: str, size: tuple[int, int]) -> None:
    settings, deep = UNETS[name]
    module = build(settings)
    cached, (one, two) = DeepCachedUNet(module), (make_inputs(settings, seed, *size) for seed in (1, 2))
    expected, features = run_diffusers(module, one, deep)
    output, of_module = cached(*one[:3], None, **one[3])
    assert torch.allclose(output, expected, atol=1e-5)
    assert torch.allclose(of_module, features, atol=1e-5)
    mixed, _ = run_diffusers(module, two, deep, features)
    reused, passed = cached(*two[:3], of_module, **two[3])
    assert passed is of_module
    assert torch.allclose(reused, mixed, atol=1e-5)
    assert (mixed - run_diffusers(module, two, deep)[0]).abs().max() > 1e-3, "the deep levels had no effect"


def test_the_deep_levels_are_not_called_where_their_features_are_given() -> None:
    module = build(THREE_LEVELS)
    called: list[str] = []
    for name in ("down_blocks.2", "mid_block", "up_blocks.0", "down_blocks.1", "up_blocks.1"):
        module.get_submodule(name).register_forward_pre_hook(lambda *_, name=name: called.append(name))
    cached, inputs = DeepCachedUNet(module), make_inputs({}, 1, 16, 16)
    _, features = cached(*inputs[:3])
    assert called == ["down_blocks.1", "down_blocks.2", "mid_block", "up_blocks.0", "up_blocks.1"]
    called.clear()
    cached(*inputs[:3], features)
    assert called == ["down_blocks.1", "up_blocks.1"]
