"""Small adapters with random weights, saved in the formats of real ones."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from safetensors.torch import save_file
from torch import nn
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

LORA_LAYOUTS = ("peft", "kohya")


def save_lora(
    path: Path,
    modules: dict[str, nn.Module],
    layout: str = "peft",
    rank: int = 4,
    seed: int = 0,
    alpha: float = 2.0,
    scale: float = 1.0,
) -> Path:
    """Save a LoRA of the attention projections of ``modules`` ("unet", "text_encoder" …), in one of LORA_LAYOUTS."""
    torch.manual_seed(seed)
    weights: dict[str, torch.Tensor] = {}
    for component, module in modules.items():
        for name, layer in module.named_modules():
            if not isinstance(layer, nn.Linear) or not name.endswith(
                ("to_q", "to_k", "to_v", "to_out.0", "q_proj", "v_proj")
            ):
                continue
            down, up = torch.randn(rank, layer.in_features) * 0.2, torch.randn(layer.out_features, rank) * 0.2
            if layout == "peft":
                up = up * scale
                weights |= {f"{component}.{name}.lora_A.weight": down, f"{component}.{name}.lora_B.weight": up}
            else:
                inner = name if component == "unet" else f"text_model.{name.removeprefix('text_model.')}"
                prefix = {"unet": "lora_unet_", "text_encoder": "lora_te_"}[component] + inner.replace(".", "_")
                weights |= {
                    f"{prefix}.lora_down.weight": down,
                    f"{prefix}.lora_up.weight": up,
                    f"{prefix}.alpha": torch.tensor(alpha),
                }
    save_file(weights, path)
    return path


def save_controlnet(folder: Path, unet: UNet2DConditionModel, seed: int = 0) -> Path:
    """Save a ControlNet for ``unet`` whose zero convolutions are not zero, as after training."""
    torch.manual_seed(seed)
    net = ControlNetModel.from_unet(
        unet, conditioning_embedding_out_channels=(8, 8, 16, 16), load_weights_from_unet=False
    )
    for parameter in net.parameters():
        # Keep the variance of the input: the control picture must have an effect after eight convolutions.
        nn.init.normal_(parameter, std=(parameter.shape[0] / parameter.numel()) ** 0.5 if parameter.dim() > 1 else 0.05)
    net.save_pretrained(folder)
    return folder


def save_image_adapter(
    folder: Path, unet: UNet2DConditionModel, seed: int = 0, tokens: int = 4, plus: bool = False
) -> tuple[Path, Path]:
    """Save an IP-Adapter for ``unet`` in its published layout, basic or "plus", and its image encoder.

    Returns the adapter's file and the encoder's folder.
    """
    torch.manual_seed(seed)
    encoder = CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=32,
            patch_size=8,
            projection_dim=24,
        )
    )
    encoder.save_pretrained(folder / "encoder")
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(
        folder / "encoder"
    )
    width = int(unet.config["cross_attention_dim"])
    weights = {
        "image_proj.proj.weight": torch.randn(tokens * width, 24) * 0.3,
        "image_proj.proj.bias": torch.zeros(tokens * width),
        "image_proj.norm.weight": torch.ones(width),
        "image_proj.norm.bias": torch.zeros(width),
    }
    if plus:
        inner_width = 64
        shapes = {
            "latents": (1, tokens, inner_width),
            "proj_in.weight": (inner_width, 32),
            "proj_in.bias": (inner_width,),
            "proj_out.weight": (width, inner_width),
            "proj_out.bias": (width,),
            "norm_out.weight": (width,),
            "norm_out.bias": (width,),
        }
        for layer in range(4):
            root = f"layers.{layer}."
            shapes |= {
                f"{root}0.to_q.weight": (inner_width, inner_width),
                f"{root}0.to_kv.weight": (2 * inner_width, inner_width),
            }
            shapes |= {
                f"{root}0.to_out.weight": (inner_width, inner_width),
                f"{root}1.1.weight": (4 * inner_width, inner_width),
            }
            shapes |= {f"{root}1.3.weight": (inner_width, 4 * inner_width)}
            shapes |= {
                f"{root}{norm}.{side}": (inner_width,)
                for norm in ("0.norm1", "0.norm2", "1.0")
                for side in ("weight", "bias")
            }
        weights = {f"image_proj.{name}": torch.randn(shape) * 0.2 for name, shape in shapes.items()}
    names = [name.removesuffix(".processor") for name in unet.attn_processors]
    for number, name in enumerate(name for name in names if name.endswith("attn2")):
        for which in "kv":
            out = unet.get_submodule(name).to_k.out_features
            weights[f"ip_adapter.{2 * number + 1}.to_{which}_ip.weight"] = torch.randn(out, width) * 0.3
    save_file(weights, folder / "adapter.safetensors")
    return folder / "adapter.safetensors", folder / "encoder"
