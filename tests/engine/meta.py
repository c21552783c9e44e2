"""Streams on torch's ``meta`` device: every family of models and every feature that a tick may have, without values."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation, Dinov2Config

from engine.diffusion.stream import Stream
from engine.models import Model, load
from engine.shared.frame import Frame
from engine.shared.parameter import Value
from engine.shared.snapshot import MIXED, Snapshot
from tests.engine.adapter_files import save_controlnet, save_image_adapter, save_lora
from tests.engine.checkpoints import save_sd, save_sdxl, unet
from tests.engine.flows import FLOWS, save_flux

META, CPU = torch.device("meta"), torch.device("cpu")
#: Family of models → function that saves a small checkpoint.
FAMILIES: dict[str, Callable[[Path], Path]] = {
    "sd": save_sd,
    "sd-v": lambda folder: save_sd(folder, prediction="v_prediction"),
    "lcm": lambda folder: save_sd(folder, "LCMScheduler"),
    "tiny": lambda folder: save_sd(folder, tiny=True),
    "sdxl": save_sdxl,
    "flux-dev": lambda folder: save_flux(folder, dev=True),
    **FLOWS,
}
#: Values of a stream, by the number of the tick: what stays, and what moves.
Values = Mapping[str, Value]


@dataclass(frozen=True)
class Feature:
    """Something that a tick may do: its values, those that move with the tick's number, and files of adapters."""

    values: Values
    changing: Callable[[int], Values] = lambda _tick: {}
    #: Whether the values are applied once, not before each tick.
    stands: bool = False
    second: bool = False
    buffer: int = 1
    #: Whether two looks are mixed, by a share that moves.
    fades: bool = False


def _adapter(name: str) -> Callable[[int], Values]:
    return lambda tick: {name: 0.3 + tick / 20}


FEATURES: dict[str, Feature] = {
    "plain": Feature({}),
    "buffer": Feature({"/steps": 2, "/buffer": 2}, buffer=2),
    "input grade": Feature({"/steps": 2}, lambda k: {"/input/gain": 1 + k / 50, "/input/hue": 2.0 * k}),
    "output grade": Feature({"/steps": 2}, lambda k: {"/output/saturation": 1 + k / 50}),
    "both grades": Feature({"/input/contrast": 1.2, "/output/contrast": 1.2}),
    "folds": Feature({"/input/kaleidoscope": 5, "/input/mirror": "both", "/mix": 0.5}),
    "feedback": Feature(
        {"/steps": 2, "/feedback/zoom": 1.1}, lambda k: {"/feedback": 0.2 + k / 50, "/feedback/rotate": float(k)}
    ),
    "feedback hue": Feature({"/feedback": 0.5, "/feedback/edge": "wrap"}, lambda k: {"/feedback/hue": 3.0 * k}),
    "noise walk": Feature({"/steps": 2, "/seed/travel": 20.0, "/seed/travel/unit": "seconds"}),
    "strength": Feature({"/steps": 2}, lambda k: {"/strength": 0.3 + k / 50}),
    "steps": Feature({}, lambda k: {"/steps": 1 + k % 3}),
    "eta": Feature({"/steps": 3}, lambda k: {"/eta": k / 20}),
    "seed mix": Feature({"/steps": 2, "/seed/2": 9}, lambda k: {"/seed/mix": k / 20}),
    "new seeds": Feature({"/steps": 2}, lambda k: {"/seed": k}),
    "text": Feature({"/mode": "text", "/steps": 2}, lambda k: {"/seed": k}),
    "memory": Feature({"/steps": 2, "/consistency": 0.5, "/consistency/frames": 2}),
    "memory, merged": Feature({"/consistency": 0.5, "/consistency/merge": "mean"}),
    "motion": Feature({"/steps": 2, "/consistency/motion": 0.6}, lambda k: {"/consistency/motion": 0.5 + k / 50}),
    "motion, folded": Feature({"/consistency/motion": 0.6, "/input/kaleidoscope": 4, "/input/gain": 1.2}),
    "smoothing": Feature({"/steps": 2}, lambda k: {"/smoothing": 0.3 + k / 50}),
    "similarity": Feature({"/similarity": True, "/similarity/threshold": 0.9}, stands=True),
    "local similarity": Feature({"/similarity": True, "/similarity/measure": "local"}, stands=True),
    "alpha mask": Feature({"/steps": 2, "/mask": "alpha"}, lambda k: {"/mask/feather": k / 50}),
    "mask of the source": Feature({"/steps": 2, "/mask": "source", "/mask/invert": True}, second=True),
    "full guidance": Feature({"/steps": 2, "/guidance/mode": "full"}, lambda k: {"/guidance": 1.5 + k / 10}),
    "self guidance": Feature(
        {"/steps": 2, "/guidance/mode": "self", "/guidance": 1.4}, lambda k: {"/guidance/delta": 0.5 + k / 50}
    ),
    "onetime guidance": Feature({"/steps": 2, "/guidance/mode": "onetime", "/guidance": 1.4}),
    "guidance, strength": Feature(
        {"/steps": 2, "/guidance/mode": "full", "/guidance": 2.0}, lambda k: {"/strength": 0.4 + k / 50}
    ),
    "prompt mix": Feature({"/prompt/2": "fire", "/prompt/blend": "spherical"}, lambda k: {"/prompt/2/weight": k / 10}),
    "crossfade of looks": Feature({"/steps": 2}, fades=True),
    "all at once": Feature(
        {"/steps": 2, "/feedback": 0.3, "/consistency/motion": 0.4, "/smoothing": 0.3, "/mask": "alpha"}
        | {"/guidance/mode": "full", "/guidance": 2.0, "/seed/travel": 20.0, "/seed/travel/unit": "seconds"},
        lambda k: {"/strength": 0.3 + k / 50, "/input/hue": float(k), "/output/hue": float(k), "/feedback/x": k / 99},
        second=True,
    ),
}
#: Features that read files, which ``save_adapters`` writes; FOLDER stands for their folder.
ADAPTERS: dict[str, Feature] = {
    "canny": Feature({"/control/1": "FOLDER/net", "/control/1/from": "canny"}, _adapter("/control/1/weight")),
    "two nets": Feature(
        {"/steps": 3, "/control/1": "FOLDER/net", "/control/1/from": "softedge", "/control/1/end": 0.5}
        | {"/control/2": "FOLDER/net", "/control/2/from": "tile"},
        lambda k: {"/control/1/weight": k / 20, "/control/2/weight": 1 - k / 20},
    ),
    "control source": Feature({"/control/1": "FOLDER/net", "/control/1/from": "source"}, second=True),
    "luminance": Feature({"/control/1": "FOLDER/net", "/control/1/from": "luminance", "/steps": 2}),
    "depth": Feature({"/control/1": "FOLDER/net", "/control/1/from": "depth", "/control/depth": "FOLDER/depth"}),
    "lora": Feature({"/lora/1": "FOLDER/lora.safetensors", "/steps": 2}, _adapter("/lora/1/weight")),
    "image prompt": Feature(
        {"/reference": "FOLDER/picture.png", "/reference/model": "FOLDER/adapter.safetensors"}
        | {"/reference/encoder": "FOLDER/encoder"},
        _adapter("/reference/weight"),
    ),
}


def load_meta(name: str) -> Model:
    """Load a model on the meta device. Its prompts are encoded on the CPU: they are no part of a tick."""
    model, texts = (load(name, device, torch.float32) for device in (META, CPU))

    def on_meta(encode: Callable[[str], object]) -> Callable[[str], object]:
        return lambda text: encode(text).map(lambda tensor: tensor.to(META))  # type: ignore[attr-defined]

    model.encode_prompt = on_meta(texts.encode_prompt)
    if texts.architecture.encode_negative is not None:
        model.architecture.encode_negative = on_meta(texts.architecture.encode_negative)
    return model


def save_adapters(folder: Path) -> Path:
    """Save one adapter of each kind for the models of ``save_sd``, and a picture."""
    import cv2

    denoiser = unet()
    save_controlnet(folder / "net", denoiser)
    save_lora(folder / "lora.safetensors", {"unet": denoiser})
    save_image_adapter(folder, denoiser)
    cv2.imwrite(str(folder / "picture.png"), np.full((40, 40, 3), 90, np.uint8))
    DepthAnythingForDepthEstimation(depth_config()).save_pretrained(folder / "depth")
    return folder


def depth_config() -> DepthAnythingConfig:
    backbone = Dinov2Config(
        hidden_size=16, num_hidden_layers=4, num_attention_heads=2, image_size=28, patch_size=14,
        out_features=["stage1", "stage2", "stage3", "stage4"], reshape_hidden_states=False, apply_layernorm=True,
    )  # fmt: skip
    return DepthAnythingConfig(
        backbone_config=backbone, reassemble_hidden_size=16, patch_size=14, neck_hidden_sizes=[8, 8, 8, 8],
        fusion_hidden_size=8, head_hidden_size=8,
    )  # fmt: skip


def ticks(stream: Stream, feature: Feature, count: int, folder: Path | None = None) -> Iterator[Callable[[], object]]:
    """Yield ``count`` ticks of a feature, each as a function that applies its values and begins it."""
    rng = np.random.default_rng(0)
    size = (stream.height, stream.width, 4)

    def snapshot(tick: int) -> Snapshot:
        named = {"/size": f"{stream.width}x{stream.height}", **feature.values, **feature.changing(tick)}
        values = {k: v.replace("FOLDER", str(folder)) if isinstance(v, str) else v for k, v in named.items()}
        looks = [{name: Snapshot(values)[name] for name in MIXED} | {"/seed": tick + seed} for seed in (1, 100)]
        mixture = ((looks[0], 1 - tick / 20), (looks[1], tick / 20)) if feature.fades else ()
        return Snapshot(values, mixture=mixture)

    for tick in range(count):
        frames = [
            Frame(rng.integers(0, 256, size, dtype=np.uint8), tick * feature.buffer + i, (tick + i) / 30)
            for i in range(feature.buffer)
        ]
        if feature.second:
            stream.second.show(Frame(rng.integers(0, 256, size, dtype=np.uint8), tick))
        if tick == 0:
            stream.apply(snapshot(tick))
            stream.settle()

        def run(tick: int = tick, frames: list[Frame] = frames) -> object:
            if not feature.stands:
                stream.apply(snapshot(tick))
            return stream.begin(frames)

        yield run
