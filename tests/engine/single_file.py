"""Conversion of a diffusers folder of SD, SDXL or SD3 to a single file in the original layout."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
_ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_OPEN_CLIP = {
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.embeddings.token_embedding": "token_embedding",
    "text_model.final_layer_norm": "ln_final",
    "text_model.encoder.layers": "transformer.resblocks",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "self_attn.out_proj": "attn.out_proj",
    "fc1": "c_fc",
    "fc2": "c_proj",
}
_SD3 = {
    "pos_embed.proj": "x_embedder.proj",
    "pos_embed.pos_embed": "pos_embed",
    "time_text_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "time_text_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
    "time_text_embed.text_embedder.linear_1": "y_embedder.mlp.0",
    "time_text_embed.text_embedder.linear_2": "y_embedder.mlp.2",
    "proj_out": "final_layer.linear",
    "norm_out.linear": "final_layer.adaLN_modulation.1",
}
#: Within a block of SD3's transformer: name in diffusers → its stream in the original, and its name there.
_SD3_BLOCK = {
    "attn.to_out.0": ("x", "attn.proj"),
    "attn.to_add_out": ("context", "attn.proj"),
    "attn2.to_out.0": ("x", "attn2.proj"),
    "attn.norm_q": ("x", "attn.ln_q"),
    "attn.norm_k": ("x", "attn.ln_k"),
    "attn2.norm_q": ("x", "attn2.ln_q"),
    "attn2.norm_k": ("x", "attn2.ln_k"),
    "attn.norm_added_q": ("context", "attn.ln_q"),
    "attn.norm_added_k": ("context", "attn.ln_k"),
    "norm1.linear": ("x", "adaLN_modulation.1"),
    "norm1_context.linear": ("context", "adaLN_modulation.1"),
    "ff.net.0.proj": ("x", "mlp.fc1"),
    "ff.net.2": ("x", "mlp.fc2"),
    "ff_context.net.0.proj": ("context", "mlp.fc1"),
    "ff_context.net.2": ("context", "mlp.fc2"),
}
_SD3_QKV = {
    "attn": ("to_q", "to_k", "to_v", "x", "attn"),
    "attn2": ("to_q", "to_k", "to_v", "x", "attn2"),
    "added": ("add_q_proj", "add_k_proj", "add_v_proj", "context", "attn"),
}
_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def unet_key(key: str, layers: int) -> str:
    """Return the original name of a U-Net's weight."""
    for name, original in _ENDS.items():
        if key.startswith(name + "."):
            return "model.diffusion_model." + original + key.removeprefix(name)
    side, rest = key.split(".", 1)
    index, kind, number, inner = (rest if side != "mid_block" else "0." + rest).split(".", 3)
    i, j = int(index), int(number)
    if kind == "resnets":
        name, tail = inner.rsplit(".", 1)
        inner = f"{_RESNET[name]}.{tail}"
    if side == "mid_block":
        place = f"middle_block.{1 if kind == 'attentions' else 2 * j}"
    elif side == "down_blocks":
        place = (
            f"input_blocks.{(i + 1) * (layers + 1)}.0.op"
            if kind == "downsamplers"
            else f"input_blocks.{1 + i * (layers + 1) + j}"
        )
    else:
        place = f"output_blocks.{i * (layers + 1) + (layers if kind == 'upsamplers' else j)}"
    if kind == "downsamplers":
        return f"model.diffusion_model.{place}.{inner.removeprefix('conv.')}"
    if side != "mid_block":
        place += {"resnets": ".0", "attentions": ".1"}.get(kind, "")
    return f"model.diffusion_model.{place}.{inner}"


def vae_key(key: str, blocks: int) -> str:
    """Return the original name of a KL autoencoder's weight."""
    key = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", key)
    key = re.sub(r"down_blocks\.(\d+)\.resnets", r"down.\1.block", key)
    key = re.sub(r"up_blocks\.(\d+)\.upsamplers\.0", lambda m: f"up.{blocks - 1 - int(m[1])}.upsample", key)
    key = re.sub(r"up_blocks\.(\d+)\.resnets", lambda m: f"up.{blocks - 1 - int(m[1])}.block", key)
    key = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", key)
    match = re.match(r"(.*)mid_block\.attentions\.0\.(.*)\.(weight|bias)$", key)
    if match:
        key = f"{match[1]}mid.attn_1.{_ATTENTION[match[2]]}.{match[3]}"
    return "first_stage_model." + key.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")


def save_single_file(folder: Path, path: Path) -> Path:
    """Save ``folder``'s weights as ``path``, and its settings in a folder of the same name next to it."""
    weights: dict[str, torch.Tensor] = {}
    if (folder / "transformer").is_dir():
        weights |= _sd3_transformer(load_file(folder / "transformer" / "diffusion_pytorch_model.safetensors"))
    else:
        weights |= _unet(load_file(folder / "unet" / "diffusion_pytorch_model.safetensors"))
    for key, tensor in load_file(folder / "vae" / "diffusion_pytorch_model.safetensors").items():
        name = vae_key(key, 4)
        is_convolution = ".attn_1." in name and tensor.dim() == 2  # attention projections are 1×1 convolutions there
        weights[name] = tensor[..., None, None] if is_convolution else tensor
    texts = {
        part: load_file(folder / part / "model.safetensors") for part in _TEXT_ENCODERS if (folder / part).is_dir()
    }
    if (folder / "transformer").is_dir():
        prefixes = {"text_encoder": "clip_l", "text_encoder_2": "clip_g", "text_encoder_3": "t5xxl"}
        for part, text in texts.items():
            weights |= {f"text_encoders.{prefixes[part]}.transformer.{key}": tensor for key, tensor in text.items()}
    elif "text_encoder_2" in texts:
        weights |= {
            f"conditioner.embedders.0.transformer.{_with_prefix(key)}": t for key, t in texts["text_encoder"].items()
        }
        weights |= _open_clip(texts["text_encoder_2"])
    else:
        weights |= {f"cond_stage_model.transformer.{_with_prefix(key)}": t for key, t in texts["text_encoder"].items()}
    save_file({key: tensor.contiguous() for key, tensor in weights.items()}, path)
    settings = path.with_suffix("")
    shutil.copytree(folder, settings, ignore=shutil.ignore_patterns("*.safetensors"))
    return path


_TEXT_ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")


def _with_prefix(key: str) -> str:
    return key if key.startswith("text_model.") else f"text_model.{key}"


def _unet(unet: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    weights = {}
    for key, tensor in unet.items():
        name = unet_key(key, 1)
        if "upsamplers" in key:  # the last of its block's modules, after the attention if there is one
            block = key.split(".")[1]
            last = 2 if f"up_blocks.{block}.attentions.0.norm.weight" in unet else 1
            place, inner = name.split(".conv.")
            name = f"{place.removesuffix('.0')}.{last}.conv.{inner}"
        weights[name] = tensor
    return weights


def _open_clip(text: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return OpenCLIP's layout: a layer's three projections are one tensor, the last projection is transposed."""
    weights = {}
    for key, tensor in text.items():
        if ".q_proj." in key:
            projections = torch.cat([text[key.replace(".q_proj.", f".{p}_proj.")] for p in "qkv"])
            tail = key.rsplit(".", 1)[1]
            key, tensor = key.replace(f"self_attn.q_proj.{tail}", f"attn.in_proj_{tail}"), projections
        elif ".k_proj." in key or ".v_proj." in key or key.endswith("position_ids"):
            continue
        elif key == "text_projection.weight":
            key, tensor = "text_projection", tensor.T
        for name, original in _OPEN_CLIP.items():
            key = key.replace(name, original)
        weights[f"conditioner.embedders.1.model.{key.replace('.mlp.fc', '.mlp.c_fc')}"] = tensor
    return weights


def _sd3_transformer(transformer: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the original layout: joint blocks of two streams; queries, keys and values are one tensor."""
    weights = {}
    count = 1 + max(int(key.split(".")[1]) for key in transformer if key.startswith("transformer_blocks."))
    for key, tensor in transformer.items():
        stem, tail = key.rsplit(".", 1)
        if not key.startswith("transformer_blocks."):
            name = next((new + key.removeprefix(old) for old, new in _SD3.items() if key.startswith(old)), key)
            weights[name] = _swap_halves(tensor) if stem == "norm_out.linear" else tensor
            continue
        _, index, inner = stem.split(".", 2)
        if inner not in _SD3_BLOCK:
            continue
        side, original = _SD3_BLOCK[inner]
        last = inner == "norm1_context.linear" and int(index) == count - 1
        weights[f"joint_blocks.{index}.{side}_block.{original}.{tail}"] = _swap_halves(tensor) if last else tensor
    for index in range(count):
        for kind, (*names, side, original) in _SD3_QKV.items():
            for tail in ("weight", "bias"):
                keys = [
                    f"transformer_blocks.{index}.{'attn2' if kind == 'attn2' else 'attn'}.{name}.{tail}"
                    for name in names
                ]
                if keys[0] in transformer:
                    weights[f"joint_blocks.{index}.{side}_block.{original}.qkv.{tail}"] = torch.cat(
                        [transformer[key] for key in keys]
                    )
    return {f"model.diffusion_model.{key}": tensor for key, tensor in weights.items()}


def _swap_halves(tensor: torch.Tensor) -> torch.Tensor:
    """Swap scale and shift, which the original has in the other order."""
    return torch.cat(tensor.chunk(2)[::-1])
