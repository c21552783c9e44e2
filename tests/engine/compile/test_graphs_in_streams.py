"""CUDA graphs in streams of every family, and in a worker that must begin again without them."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from engine.bench.small_weights import FAMILIES, build_small
from engine.compile import Accelerator
from engine.compile.cuda_graphs import CudaGraphRuntime
from engine.diffusion.row_counts import count_rows
from engine.diffusion.stream import Stream
from engine.models import load
from engine.models.loading import build_model
from engine.shared.frame import Frame
from engine.shared.mailbox import Mailbox, Mailboxes
from engine.shared.messages import GraphsFailed
from engine.shared.options import EngineOptions
from engine.shared.snapshot import Snapshot
from engine.worker.loop import Worker
from tests.engine.adapter_files import save_lora
from tests.engine.compile.fake_graphs import FakeGraphs

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    "values",
    [
        {"/steps": 1},
        {"/steps": 3},
        {"/steps": 2, "/buffer": 2},
        {"/steps": 2, "/guidance": 1.5, "/guidance/mode": "full"},
        {"/steps": 3, "/guidance": 1.5, "/guidance/mode": "self"},
        {"/steps": 2, "/buffer": 2, "/guidance": 1.5, "/guidance/mode": "onetime"},
    ],
    ids=str,
)
def test_the_rows_of_a_plan_are_those_that_a_stream_calls_with(values: dict[str, Any]) -> None:
    stream = Stream(load("pocket", CPU, torch.float32), 64, 64, blocking=True)
    snapshot = Snapshot(values)
    stream.apply(snapshot)
    buffer, called = snapshot.diffusion.buffer, set()
    frames = [Frame(np.full((64, 64, 4), 90, np.uint8))] * buffer
    for _ in range(len(stream.plan.steps) + 1):
        stream.step(frames)
        called.add(stream.stats.rows)
    while stream.slots:
        stream.step([])
        called.add(stream.stats.rows)
    stream.close()
    counts = count_rows(snapshot.diffusion, len(stream.plan.steps))
    assert called == set(counts["denoiser"].present)
    assert counts["encoder"].present == counts["decoder"].present == (buffer,)
    assert max(counts["denoiser"].present) <= counts["denoiser"].largest == 2 * buffer * len(stream.plan.steps)


def test_a_stream_gives_the_same_pictures_with_graphs_and_captures_nothing_in_its_loop(tmp_path: Path) -> None:
    model = load("pocket", CPU, torch.float32)
    stream, graphs = Stream(model, 64, 64, blocking=True), FakeGraphs()
    snapshot = Snapshot({"/steps": 2, "/guidance": 1.5, "/guidance/mode": "onetime"})
    stream.apply(snapshot)
    rng = np.random.default_rng(1)
    pictures = [Frame(rng.integers(0, 256, (64, 64, 4), dtype=np.uint8), i) for i in range(5)]

    def play() -> np.ndarray:
        stream.restart()
        return np.stack([frame.pixels for picture in pictures for frame in stream.step([picture]) or ()])

    expected = play()
    accelerator = Accelerator("graphs", CPU, tmp_path, graphs)
    counts = count_rows(snapshot.diffusion, len(stream.plan.steps))
    accelerator.compile_all(lambda: model.compiled_modules, counts)
    captures, replays = len(graphs.captures), len(graphs.replays)
    assert captures == sum(len(counts[one.name].present) for one in model.compiled_modules if one.called)
    assert np.abs(play().astype(int) - expected).max() <= 1
    assert len(graphs.captures) == captures
    assert len(graphs.replays) == replays + 3 * len(pictures) - 1, "the first tick finishes no frame"
    file = save_lora(tmp_path / "l.safetensors", {"unet": model.denoiser})
    values = {"/lora/1": str(file), "/lora/1/weight": 1.0, "/steps": 2}
    stream.apply(Snapshot(values))
    stream.settle()
    with_lora = play()
    backends, model.architecture.compiled_denoiser.backends = model.architecture.compiled_denoiser.backends, {}
    assert np.abs(with_lora.astype(int) - play()).max() <= 1, "the LoRA is followed in place"
    model.architecture.compiled_denoiser.backends = backends
    stream.apply(Snapshot({"/steps": 2}))
    stream.settle()
    assert np.abs(with_lora.astype(int) - play()).max() > 1
    replays = len(graphs.replays)
    stream.apply(Snapshot({"/steps": 2, "/consistency": 1.0}))
    play()
    assert len(graphs.replays) == replays + 2 * len(pictures) - 1, "with a memory of frames the denoiser runs itself"
    stream.close()


REGIONAL = [(family, "both") for family in ("flux", "flux2", "sd3", "sdxl")]


@pytest.mark.parametrize(("family", "regions"), [*((family, "off") for family in sorted(FAMILIES)), *REGIONAL])
def test_every_family_gives_the_same_pictures_with_graphs(family: str, regions: str, tmp_path: Path) -> None:
    model = build_model(family, build_small(family, torch.float32), CPU, torch.float32)
    stream = Stream(model, 64, 64, blocking=True)
    stream.apply(Snapshot({"/steps": 2, "/regions": regions, "/regions/share": 0.5}))
    frames = [Frame(np.full((64, 64, 4), 60 + 40 * i, np.uint8), i) for i in range(3)]

    def play() -> np.ndarray:
        stream.restart()
        return np.stack([frame.pixels for one in frames for frame in stream.step([one]) or ()])

    expected = play()
    accelerator = Accelerator("graphs", CPU, tmp_path, FakeGraphs())
    accelerator.compile_all(lambda: model.compiled_modules, count_rows(stream.snapshot.diffusion, 2))
    assert np.abs(play().astype(int) - expected).max() <= 1
    assert expected.std() > 10
    components = [component for component in model.compiled_modules if component.called is not None]
    assert ("regions" in [component.name for component in components]) == (regions == "both")
    refused = [component.name for component in components if not component.backends]
    # Its Python reads the lengths of the prompts from the mask: a graph would contain those of the recording.
    assert refused == (["denoiser"] if family == "lumina2" else []), accelerator.notes
    stream.close()


def test_the_worker_ends_to_begin_again_without_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    graphs = FakeGraphs(survives_failure=False)
    graphs.fails_at = "end"
    monkeypatch.setattr("engine.worker.loop.open_graph_runtime", lambda _device: graphs)
    context = multiprocessing.get_context("spawn")
    boxes = Mailboxes(*(Mailbox(context, 64) for _ in range(3)))
    bridge, pipe = context.Pipe()
    snapshot = Snapshot({"/size": "64x64", "/steps": 1})
    try:
        worker = Worker(pipe, boxes, EngineOptions("cpu", accelerate="graphs"), snapshot)
        worker.loop()
        worker.close()
        messages = []
        while bridge.poll():
            messages.append(bridge.recv())
        [failed] = [message for message in messages if isinstance(message, GraphsFailed)]
        assert "no CUDA graphs of the" in failed.reason
        again = Worker(pipe, boxes, EngineOptions("cpu", accelerate="graphs", cuda_graphs=False), snapshot)
        assert not again.accelerator.enabled
    finally:
        for box in boxes:
            box.close()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", ["pocket"])
def test_a_model_is_recorded_and_replayed_on_a_gpu(name: str, tmp_path: Path) -> None:
    device = torch.device("cuda", torch.cuda.current_device())
    model = load(name, device, torch.float16)
    stream = Stream(model, 256, 256, blocking=True)
    stream.apply(Snapshot({"/steps": 2}))
    frames = [Frame(np.full((256, 256, 4), 20 * i, np.uint8), i) for i in range(6)]

    def play() -> np.ndarray:
        stream.restart()
        return np.stack([frame.pixels for one in frames for frame in stream.step([one]) or ()])

    expected = play()
    accelerator = Accelerator("graphs", device, tmp_path, CudaGraphRuntime(device))
    accelerator.compile_all(lambda: model.compiled_modules, count_rows(stream.snapshot.diffusion, 2))
    assert accelerator.state == "graphs", accelerator.notes
    assert np.abs(play().astype(int) - expected).max() <= 2
    stream.close()
