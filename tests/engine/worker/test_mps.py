"""A running engine on a stand-in for MPS: no two threads ever run operators at once, and every feature works there.

Not MPS itself: none was available where this was written.
"""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from engine.models import load
from engine.runtime.device_lock import device_lock
from engine.shared.frame import Frame
from engine.shared.mailbox import Mailbox, Mailboxes
from engine.shared.messages import EngineError, FromEngine, Ready, Reloaded, Reverted, Stop, ValuesRejected
from engine.shared.options import EngineOptions
from engine.shared.snapshot import Snapshot
from engine.worker.failures import free_memory
from engine.worker.loop import Worker
from engine.worker.offline import render
from tests.engine.adapter_files import save_controlnet, save_image_adapter, save_lora
from tests.engine.checkpoints import save_sd
from tests.engine.fake_mps import FakeMps, fake_on_all_threads
from tests.waiting import until

SMALL = {"/size": "64x64", "/steps": 2, "/dtype": "float32", "/model/fade": 0.1}


class Engine:
    """A worker on the fake device, on a thread of its own, with a camera that never stops."""

    def __init__(self, values: dict[str, Any], hooks: str = "") -> None:
        context = multiprocessing.get_context("spawn")
        self.boxes = Mailboxes(*(Mailbox(context, 96) for _ in range(3)))
        self.pipe, self._engine_pipe = context.Pipe()
        self.messages: list[FromEngine] = []
        self.shown: set[int] = set()
        self._values, self._number = dict(values), 0
        self._sequence = 0
        self._options = EngineOptions("mps", hooks=hooks)
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()
        until(lambda: self._messages_of(Ready) or not self._thread.is_alive(), 60, "the start")

    def _run(self) -> None:
        worker = Worker(self._engine_pipe, self.boxes, self._options, Snapshot(self._values))
        worker.loop()
        worker.close()

    def _messages_of(self, *types: type) -> list[Any]:
        while self.pipe.poll():
            self.messages.append(self.pipe.recv())
        return [message for message in self.messages if isinstance(message, types)]

    def set(self, **values: Any) -> None:
        """Set parameters, and wait until frames leave for which they are wholly in effect."""
        self._values |= {"/" + name.replace("_", "/"): value for name, value in values.items()}
        self._number += 1
        self.pipe.send(Snapshot(self._values, self._number))
        until(self._is_shown, 60, f"a frame with {values}")

    def _is_shown(self) -> bool:
        self._sequence += 1
        noise = np.random.default_rng(self._sequence).integers(0, 256, (64, 64, 4), dtype=np.uint8)
        self.boxes.inbox.write(Frame(noise, self._sequence))
        self.boxes.second.write(Frame(noise, 1))  # one picture: a reference that follows it is encoded once
        frame = self.boxes.outbox.read(0.01)
        if frame is not None:
            self.shown.add(frame.snapshot)
        return self._number in self.shown or not self._thread.is_alive()

    def reload(self, **values: Any) -> None:
        """Set parameters that need a reload, and wait for its end."""
        count = len(self._messages_of(Reloaded))
        self.set(**values)
        until(lambda: self._is_shown() and len(self._messages_of(Reloaded)) > count, 60, f"a reload with {values}")

    def errors(self) -> list[Any]:
        """Return everything that went wrong."""
        return self._messages_of(EngineError, Reverted, ValuesRejected)

    def close(self) -> None:
        """End the engine."""
        self.pipe.send(Stop())
        self._thread.join(20)
        assert not self._thread.is_alive()
        for box in self.boxes:
            box.close()


@pytest.fixture
def mps(monkeypatch: pytest.MonkeyPatch) -> FakeMps:
    device = FakeMps()
    fake_on_all_threads(device, monkeypatch)
    return device


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    model = load("pocket", torch.device("cpu"), torch.float32)
    parts = {"unet": model.denoiser, "text_encoder": model.architecture.components["text_encoder"]}
    cv2.imwrite(str(tmp_path / "look.png"), np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    adapter, encoder = save_image_adapter(tmp_path, model.denoiser)
    return {
        "lora": save_lora(tmp_path / "lora.safetensors", parts),
        "net": save_controlnet(tmp_path / "net", model.denoiser),
        "adapter": adapter,
        "encoder": encoder,
        "picture": tmp_path / "look.png",
        "model": save_sd(tmp_path / "sd"),
    }


@pytest.fixture
def engine(mps: FakeMps) -> Iterator[Engine]:
    running = Engine(SMALL)
    yield running
    running.close()


def test_no_two_threads_run_operators_at_once(mps: FakeMps, engine: Engine, files: dict[str, Path]) -> None:
    for prompt in ("green spiral", "red tunnel", "blue rain"):
        engine.set(prompt=prompt)
    engine.set(lora_1=str(files["lora"]), lora_1_weight=0.5)
    engine.set(lora_1_weight=0.8, prompt="yellow dots")
    engine.set(control_1=str(files["net"]), control_1_from="canny")
    engine.set(reference_model=str(files["adapter"]), reference_encoder=str(files["encoder"]), reference="source")
    engine.set(reference=str(files["picture"]))
    engine.reload(size="96x64")
    engine.reload(model=str(files["model"]), control_1="", lora_1="", reference="", prompt="white noise")
    assert engine.errors() == []
    assert mps.violations == []
    assert {"engine", "reload", "prompts", "adapters_0"} <= mps.threads, "all of them had work on the device"


def test_every_effect_works_without_what_mps_lacks(mps: FakeMps, engine: Engine) -> None:
    engine.reload(size="72x88")  # sides that divide neither by 16 nor by the flow's picture
    engine.set(consistency_motion=0.6, smoothing=0.4, consistency=0.5)
    engine.set(similarity=True, similarity_threshold=0.999, similarity_measure="local")
    engine.set(similarity=False, feedback=0.4, feedback_edge="hold", feedback_zoom=1.2)
    engine.set(guidance_mode="full", guidance=2.0, seed_travel=1.0, eta=0.5)
    engine.set(mode="text")
    assert engine.errors() == []
    assert mps.violations == []


def test_a_hook_may_build_tensors_on_the_device(mps: FakeMps, tmp_path: Path) -> None:
    (tmp_path / "tint.py").write_text(
        "import torch\n"
        'PARAMETERS = {"amount": (0.5, 0.0, 1.0, "Share")}\n'
        'TINT = torch.tensor([1.0, 0.5, 0.5], device="mps").view(1, 3, 1, 1) * 0.9\n'
        "def after(pictures, values, seconds):\n"
        "    return pictures * TINT\n"
    )
    running = Engine(SMALL, str(tmp_path))
    running.set(prompt="green spiral")
    (tmp_path / "tint.py").write_text((tmp_path / "tint.py").read_text().replace("0.9", "0.8"))
    running.set(prompt="red tunnel")
    running.close()
    assert running.errors() == []
    assert mps.violations == []


def test_a_render_does_not_wait_inside_the_lock_for_its_adapters(mps: FakeMps, files: dict[str, Path]) -> None:
    values = SMALL | {"/lora/1": str(files["lora"]), "/control/1": str(files["net"]), "/prompt": "green spiral"}
    outputs: list[Frame] = []
    inputs = [Frame(np.full((64, 64, 4), 90, np.uint8), number) for number in range(3)]

    def work() -> None:
        outputs.extend(render(inputs, Snapshot(values), EngineOptions("mps")))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(60)
    assert not thread.is_alive(), "it waits for itself"
    assert [frame.sequence for frame in outputs] == [0, 1, 2]
    # Nothing runs beside a render: it needs no lock while it is alone.
    assert [one for one in mps.violations if "outside the lock" not in one] == []


def test_unused_memory_is_returned_to_mps_inside_the_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[bool] = []
    lock: Any = device_lock(torch.device("mps"))
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.mps, "empty_cache", lambda: held.append(lock.is_held))
    free_memory()
    assert held == [True]
