"""Depth control images: estimated by a model, in 0..1 per picture, and an unreadable model is one note."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation, Dinov2Config

from engine.diffusion.stream import Stream
from engine.models import load
from engine.shared.frame import Frame
from engine.shared.snapshot import Snapshot
from tests.engine.adapter_files import save_controlnet
from tests.engine.models.pipelines import picture


def test_depth_control_images_come_from_the_depth_model(tmp_path: Path) -> None:
    torch.manual_seed(0)
    pocket = load("pocket", torch.device("cpu"), torch.float32)
    backbone = Dinov2Config(
        hidden_size=24,
        num_hidden_layers=4,
        num_attention_heads=2,
        image_size=56,
        patch_size=14,
        out_indices=[1, 2, 3, 4],
        reshape_hidden_states=False,
    )
    settings = DepthAnythingConfig(
        backbone_config=backbone, reassemble_hidden_size=24, neck_hidden_sizes=[8, 8, 8, 8], fusion_hidden_size=8
    )
    estimator = DepthAnythingForDepthEstimation(settings)
    for parameter in estimator.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    estimator.save_pretrained(tmp_path / "depth")
    net = save_controlnet(tmp_path / "net", pocket.denoiser)
    stream = Stream(pocket, 64, 64)
    values = {"/steps": 1, "/control/1": str(net), "/control/1/from": "depth"}
    stream.apply(Snapshot(values))
    stream.settle()
    without = stream.step([Frame(picture(64))])
    stream.apply(Snapshot(values | {"/control/depth": str(tmp_path / "depth")}))
    stream.settle()
    assert stream.adapters.take_notes() == []
    controlled = stream.step([Frame(picture(64))])
    assert without
    assert controlled
    assert not np.array_equal(without[0].pixels, controlled[0].pixels)
    depth_estimator = stream.adapters.controlnet.depth_estimator
    assert depth_estimator is not None
    depth = depth_estimator(torch.rand(2, 3, 60, 90))
    assert depth.shape == (2, 3, 60, 90)
    assert depth.amin((1, 2, 3)).tolist() == [0.0, 0.0]
    assert depth.amax((1, 2, 3)).tolist() == [1.0, 1.0]
    nowhere = str(tmp_path / "nowhere")
    stream.apply(Snapshot({"/control/depth": nowhere}))
    stream.settle()
    assert stream.adapters.take_notes()[0] == f"depth model {nowhere!r} is neither a path nor in controlnets/"
    stream.adapters.close()
    stream.close()
