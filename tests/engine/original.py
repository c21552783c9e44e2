"""A diffusers folder of Stable Diffusion as one file in the original layout, as checkpoints are passed around."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

_RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "norm2": "out_layers.0", "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1", "conv_shortcut": "skip_connection",
}  # fmt: skip
_ENDS = {
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2",
}  # fmt: skip
_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def unet_key(key: str, layers: int) -> str:
    """The original name of a U-Net's weight."""
    for ours, theirs in _ENDS.items():
        if key.startswith(ours + "."):
            return "model.diffusion_model." + theirs + key.removeprefix(ours)
    side, rest = key.split(".", 1)
    index, kind, number, inner = (rest if side != "mid_block" else "0." + rest).split(".", 3)
    i, j = int(index), int(number)
    if kind == "resnets":
        name, tail = inner.rsplit(".", 1)
        inner = f"{_RESNET[name]}.{tail}"
    if side == "mid_block":
        place = f"middle_block.{1 if kind == 'attentions' else 2 * j}"
    elif side == "down_blocks":
        place = f"input_blocks.{(i + 1) * (layers + 1)}.0.op" if kind == "downsamplers" else f"input_blocks.{1 + i * (layers + 1) + j}"
    else:
        place = f"output_blocks.{i * (layers + 1) + (layers if kind == 'upsamplers' else j)}"
    if kind == "downsamplers":
        return f"model.diffusion_model.{place}.{inner.removeprefix('conv.')}"
    if side != "mid_block":
        place += {"resnets": ".0", "attentions": ".1"}.get(kind, "")
    return f"model.diffusion_model.{place}.{inner}"


def vae_key(key: str, blocks: int) -> str:
    """The original name of a KL autoencoder's weight."""
    key = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", key)
    key = re.sub(r"down_blocks\.(\d+)\.resnets", r"down.\1.block", key)
    key = re.sub(r"up_blocks\.(\d+)\.upsamplers\.0", lambda m: f"up.{blocks - 1 - int(m[1])}.upsample", key)
    key = re.sub(r"up_blocks\.(\d+)\.resnets", lambda m: f"up.{blocks - 1 - int(m[1])}.block", key)
    key = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", key)
    match = re.match(r"(.*)mid_block\.attentions\.0\.(.*)\.(weight|bias)$", key)
    if match:
        key = f"{match[1]}mid.attn_1.{_ATTENTION[match[2]]}.{match[3]}"
    return "first_stage_model." + key.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")


def as_one_file(folder: Path, path: Path) -> Path:
    """Writes ``folder``'s weights as ``path``, and its settings without weights beside it, in a folder of the same name."""
    weights: dict[str, torch.Tensor] = {}
    unet = load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")
    for key, tensor in unet.items():
        if "upsamplers" in key:  # it is the last of its block's modules, after the attention where there is one
            block = key.split(".")[1]
            last = 2 if f"up_blocks.{block}.attentions.0.norm.weight" in unet else 1
            name = unet_key(key, 1)
            place, inner = name.split(".conv.")
            name = f"{place.removesuffix('.0')}.{last}.conv.{inner}"
        else:
            name = unet_key(key, 1)
        weights[name] = tensor
    for key, tensor in load_file(folder / "vae" / "diffusion_pytorch_model.safetensors").items():
        name = vae_key(key, 4)
        wide = ".attn_1." in name and tensor.dim() == 2
        weights[name] = tensor[..., None, None] if wide else tensor
    for key, tensor in load_file(folder / "text_encoder" / "model.safetensors").items():
        within = key if key.startswith("text_model.") else f"text_model.{key}"
        weights[f"cond_stage_model.transformer.{within}"] = tensor
    save_file({key: tensor.contiguous() for key, tensor in weights.items()}, path)
    beside = path.with_suffix("")
    shutil.copytree(folder, beside, ignore=shutil.ignore_patterns("*.safetensors"))
    return path
