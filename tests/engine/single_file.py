"""A diffusers folder of SD, SDXL or SD3 as one file in the original layout, as checkpoints are passed around."""

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
    "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2",
}  # fmt: skip
_OPEN_CLIP = {
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.embeddings.token_embedding": "token_embedding",
    "text_model.final_layer_norm": "ln_final",
    "text_model.encoder.layers": "transformer.resblocks",
    "layer_norm1": "ln_1", "layer_norm2": "ln_2", "self_attn.out_proj": "attn.out_proj", "fc1": "c_fc", "fc2": "c_proj",
}  # fmt: skip
_SD3 = {
    "pos_embed.proj": "x_embedder.proj", "pos_embed.pos_embed": "pos_embed",
    "time_text_embed.timestep_embedder.linear_1": "t_embedder.mlp.0", "time_text_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
    "time_text_embed.text_embedder.linear_1": "y_embedder.mlp.0", "time_text_embed.text_embedder.linear_2": "y_embedder.mlp.2",
    "proj_out": "final_layer.linear", "norm_out.linear": "final_layer.adaLN_modulation.1",
}  # fmt: skip
#: Within a block of SD3's transformer: ours → the stream it belongs to, and its name there.
_SD3_BLOCK = {
    "attn.to_out.0": ("x", "attn.proj"), "attn.to_add_out": ("context", "attn.proj"), "attn2.to_out.0": ("x", "attn2.proj"),
    "attn.norm_q": ("x", "attn.ln_q"), "attn.norm_k": ("x", "attn.ln_k"),
    "attn2.norm_q": ("x", "attn2.ln_q"), "attn2.norm_k": ("x", "attn2.ln_k"),
    "attn.norm_added_q": ("context", "attn.ln_q"), "attn.norm_added_k": ("context", "attn.ln_k"),
    "norm1.linear": ("x", "adaLN_modulation.1"), "norm1_context.linear": ("context", "adaLN_modulation.1"),
    "ff.net.0.proj": ("x", "mlp.fc1"), "ff.net.2": ("x", "mlp.fc2"),
    "ff_context.net.0.proj": ("context", "mlp.fc1"), "ff_context.net.2": ("context", "mlp.fc2"),
}  # fmt: skip
_SD3_QKV = {"attn": ("to_q", "to_k", "to_v", "x", "attn"), "attn2": ("to_q", "to_k", "to_v", "x", "attn2"),
            "added": ("add_q_proj", "add_k_proj", "add_v_proj", "context", "attn")}  # fmt: skip
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
    if (folder / "transformer").is_dir():
        weights |= _sd3_transformer(load_file(folder / "transformer" / "diffusion_pytorch_model.safetensors"))
    else:
        weights |= _unet(load_file(folder / "unet" / "diffusion_pytorch_model.safetensors"))
    for key, tensor in load_file(folder / "vae" / "diffusion_pytorch_model.safetensors").items():
        name = vae_key(key, 4)
        wide = ".attn_1." in name and tensor.dim() == 2
        weights[name] = tensor[..., None, None] if wide else tensor
    texts = {part: load_file(folder / part / "model.safetensors") for part in _PARTS if (folder / part).is_dir()}
    if (folder / "transformer").is_dir():
        starts = {"text_encoder": "clip_l", "text_encoder_2": "clip_g", "text_encoder_3": "t5xxl"}
        for part, text in texts.items():
            weights |= {f"text_encoders.{starts[part]}.transformer.{key}": tensor for key, tensor in text.items()}
    elif "text_encoder_2" in texts:
        weights |= {
            f"conditioner.embedders.0.transformer.{_within(key)}": t for key, t in texts["text_encoder"].items()
        }
        weights |= _open_clip(texts["text_encoder_2"])
    else:
        weights |= {f"cond_stage_model.transformer.{_within(key)}": t for key, t in texts["text_encoder"].items()}
    save_file({key: tensor.contiguous() for key, tensor in weights.items()}, path)
    beside = path.with_suffix("")
    shutil.copytree(folder, beside, ignore=shutil.ignore_patterns("*.safetensors"))
    return path


_PARTS = ("text_encoder", "text_encoder_2", "text_encoder_3")


def _within(key: str) -> str:
    return key if key.startswith("text_model.") else f"text_model.{key}"


def _unet(unet: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    weights = {}
    for key, tensor in unet.items():
        name = unet_key(key, 1)
        if "upsamplers" in key:  # it is the last of its block's modules, after the attention where there is one
            block = key.split(".")[1]
            last = 2 if f"up_blocks.{block}.attentions.0.norm.weight" in unet else 1
            place, inner = name.split(".conv.")
            name = f"{place.removesuffix('.0')}.{last}.conv.{inner}"
        weights[name] = tensor
    return weights


def _open_clip(text: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """OpenCLIP's layout: the three projections of a layer are one tensor, the last projection lies on its side."""
    weights = {}
    for key, tensor in text.items():
        if ".q_proj." in key:
            joined = torch.cat([text[key.replace(".q_proj.", f".{p}_proj.")] for p in "qkv"])
            tail = key.rsplit(".", 1)[1]
            key, tensor = key.replace(f"self_attn.q_proj.{tail}", f"attn.in_proj_{tail}"), joined
        elif ".k_proj." in key or ".v_proj." in key or key.endswith("position_ids"):
            continue
        elif key == "text_projection.weight":
            key, tensor = "text_projection", tensor.T
        for ours, theirs in _OPEN_CLIP.items():
            key = key.replace(ours, theirs)
        weights[f"conditioner.embedders.1.model.{key.replace('.mlp.fc', '.mlp.c_fc')}"] = tensor
    return weights


def _sd3_transformer(ours: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Stability's layout: joint blocks of two streams, queries, keys and values in one tensor."""
    weights = {}
    count = 1 + max(int(key.split(".")[1]) for key in ours if key.startswith("transformer_blocks."))
    for key, tensor in ours.items():
        stem, tail = key.rsplit(".", 1)
        if not key.startswith("transformer_blocks."):
            name = next((theirs + key.removeprefix(own) for own, theirs in _SD3.items() if key.startswith(own)), key)
            weights[name] = _swapped(tensor) if stem == "norm_out.linear" else tensor
            continue
        _, index, inner = stem.split(".", 2)
        if inner not in _SD3_BLOCK:
            continue
        side, theirs = _SD3_BLOCK[inner]
        last = inner == "norm1_context.linear" and int(index) == count - 1
        weights[f"joint_blocks.{index}.{side}_block.{theirs}.{tail}"] = _swapped(tensor) if last else tensor
    for index in range(count):
        for kind, (*names, side, theirs) in _SD3_QKV.items():
            for tail in ("weight", "bias"):
                keys = [
                    f"transformer_blocks.{index}.{'attn2' if kind == 'attn2' else 'attn'}.{name}.{tail}"
                    for name in names
                ]
                if keys[0] in ours:
                    weights[f"joint_blocks.{index}.{side}_block.{theirs}.qkv.{tail}"] = torch.cat(
                        [ours[key] for key in keys]
                    )
    return {f"model.diffusion_model.{key}": tensor for key, tensor in weights.items()}


def _swapped(tensor: torch.Tensor) -> torch.Tensor:
    """Scale and shift the other way round."""
    return torch.cat(tensor.chunk(2)[::-1])
