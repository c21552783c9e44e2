"""All that is added to one model while it runs: LoRAs, ControlNets, an image prompt. Loaded on threads, put on at a frame boundary."""

from __future__ import annotations

import threading
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from engine.adapters import controlnet as control
from engine.adapters import ip_adapter as image_prompt
from engine.adapters import lora
from engine.adapters.async_loader import AsyncLoader
from engine.adapters.attention import AttentionState, ImagePrompt, KeyValueMemory, install_stream_attention
from engine.adapters.controlnet import ControlSetting
from engine.compile.dispatch import CompiledModule
from engine.models import Model
from engine.models.controlnet_inputs import ControlNetInputs
from engine.shared.frame import Frame
from engine.shared.parameter import InvalidValue
from engine.shared.snapshot import Snapshot

#: A reference picture from the second source is taken once in so many frames.
EVERY = 15


class Adapters:
    """What the parameters ask to be added to ``model``. ``update`` belongs to the frame loop and never loads anything itself.

    ``nets`` are the ControlNets by their number, 1 to 3; ``notes`` are lines for the user on what could not be loaded.
    """

    def __init__(self, model: Model) -> None:
        self._model, self._architecture = model, model.architecture
        parts = {
            name: part for name, part in self._architecture.components.items() if isinstance(part, torch.nn.Module)
        }
        self._denoiser = {self._architecture.denoiser_component: parts[self._architecture.denoiser_component]}
        self._texts = {name: part for name, part in parts.items() if name.startswith("text_encoder")}
        self.loras, self._text_loras = (
            lora.Loras(self._denoiser, self._architecture.compiled_denoiser.mark_weights_changed),
            lora.Loras(self._texts),
        )
        self.nets: dict[int, CompiledModule] = {}
        self.settings: dict[int, ControlSetting] = {}
        self.depth: Any = None
        self._attention = AttentionState()
        if self._architecture.supports_controlnet:
            self._attention = install_stream_attention(model.denoiser)
            self._architecture.compiled_denoiser.is_unmodified = self._attention.plain
        self.prompt: ImagePrompt | None = None
        self.prompt_weight = 0.0
        self.notes: list[str] = []
        self._lora_files: dict[tuple[str, float], lora.Adapter] = {}
        self._net_files: dict[str, CompiledModule] = {}
        self._wanted = AsyncLoader(self._read_loras, ("",) * lora.SLOTS)
        self._wanted_nets = AsyncLoader(self._read_nets, ("",) * (control.SLOTS + 1))
        self._wanted_prompt: AsyncLoader[tuple[str, str, str], ImagePrompt | None] = AsyncLoader(
            self._read_prompt, ("", "", "")
        )
        self._second: Frame | None = None
        self._image_adapter: tuple[tuple[str, str], image_prompt.ImageAdapter] | None = None
        self._dressed: tuple[str, ...] = ()
        self._dressing = threading.Lock()
        self._names: tuple[str, ...] = ("",) * lora.SLOTS
        self._text_files: list[lora.Adapter | None] = []

    @property
    def parts(self) -> list[CompiledModule]:
        """What an accelerator may run."""
        return list(self.nets.values())

    @property
    def busy(self) -> bool:
        """Whether something is being loaded."""
        return self._wanted.busy or self._wanted_nets.busy or self._wanted_prompt.busy

    def update(self, snapshot: Snapshot, wait: bool = False, second: Frame | None = None) -> None:
        """Takes what is ready of what ``snapshot`` asks for, and all of its weights. ``wait`` waits until all is ready.

        ``second`` is the newest frame of the second source, for a reference picture that is one.
        """
        names = tuple(snapshot.text(f"/lora/{i}") for i in range(1, lora.SLOTS + 1))
        made = self._wanted.poll(names, wait)
        if made is not None:
            self._put_on(names, made)
        self.loras.weigh([snapshot.real(f"/lora/{i}/weight") for i in range(1, lora.SLOTS + 1)])
        nets = tuple(snapshot.text(f"/control/{i}") for i in range(1, control.SLOTS + 1))
        found = self._wanted_nets.poll((*nets, snapshot.text("/control/depth")), wait)
        if found is not None:
            self.nets, self.depth = found
        self.settings = {i: _setting(snapshot, i) for i in self.nets}
        picture = snapshot.text("/reference")
        if picture == "source":
            # A moving reference is read anew as often as its encoder can, but not for every frame.
            self._second = second
            picture = f"source {second.sequence // EVERY}" if second is not None else ""
        keys = (snapshot.text("/reference/model"), snapshot.text("/reference/encoder"), picture)
        prompt = self._wanted_prompt.poll(keys if all(keys) else ("", "", ""), wait)
        if prompt is not None or not all(keys):
            self.prompt = prompt
        self.prompt_weight = snapshot.real("/reference/weight") if snapshot.flag("/reference/on") else 0.0
        for work in (self._wanted, self._wanted_nets, self._wanted_prompt):
            self.notes += work.told()

    def begin(self, memory: KeyValueMemory, rows: Hashable, negatives: int) -> None:
        """A denoiser call of this thread begins, with its stream's memory; the last ``negatives`` of its rows carry the negative prompt."""
        state = self._attention
        state.memory, state.prompt, state.weight, state.negatives = memory, self.prompt, self.prompt_weight, negatives
        memory.begin((rows, negatives))

    def maps(self, snapshot: Snapshot, pictures: Tensor, second: Tensor | None) -> dict[int, Tensor]:
        """The control picture of each control that counts, (B, 3, H, W) in 0..1, from the input or the second source (1, 3, H, W)."""
        made: dict[str, Tensor] = {}
        for number, setting in self.settings.items():
            kind = snapshot.text(f"/control/{number}/from")
            if (
                setting.weight == 0.0
                or kind in made
                or (kind == "source" and second is None)
                or (kind == "depth" and self.depth is None)
            ):
                continue
            if kind == "source":
                assert second is not None
                made[kind] = second.expand(len(pictures), -1, -1, -1)
            elif kind == "depth":
                made[kind] = self.depth(pictures)
            else:
                made[kind] = control.MAPS[kind](pictures) if kind in control.MAPS else pictures
        kinds = {number: snapshot.text(f"/control/{number}/from") for number in self.settings}
        return {number: made[kind] for number, kind in kinds.items() if kind in made}

    def weights(self, position: int, steps: int) -> dict[int, float]:
        """The weight of each control at a step."""
        return {number: setting.at(position, steps) for number, setting in self.settings.items()}

    def style(self, snapshot: Snapshot) -> tuple[Any, ...]:
        """What of the LoRAs changes how prompts are read: () where none of them touches a text encoder."""
        if not any(self._text_files):
            return ()
        # In steps of a twentieth: each is an encoding of its own, and a fader gives hundreds of values.
        return (
            self._names,
            tuple(round(snapshot.real(f"/lora/{i}/weight") * 20) / 20 for i in range(1, lora.SLOTS + 1)),
        )

    @contextmanager
    def dressed(self, style: tuple[Any, ...]) -> Iterator[None]:
        """Gives the text encoders the LoRAs of ``style``, on a thread that encodes prompts; one at a time."""
        names, weights = style or ((), ())
        with self._dressing:
            if names != self._dressed:
                self._text_loras.install(self._text_files if names else [])
                self._dressed = names
            self._text_loras.weigh(weights)
            yield

    def close(self) -> None:
        """Ends the threads."""
        for work in (self._wanted, self._wanted_nets, self._wanted_prompt):
            work.close()

    def _put_on(self, names: tuple[str, ...], adapters: Sequence[lora.Adapter | None]) -> None:
        def of(parts: Mapping[str, Any]) -> list[lora.Adapter | None]:
            return [a and ({key: pair for key, pair in a.items() if key[0] in parts} or None) for a in adapters]

        self.loras.install(of(self._denoiser))
        self._names, self._text_files = names, of(self._texts)

    def _read_loras(self, names: tuple[str, ...]) -> list[lora.Adapter | None]:
        adapters: list[lora.Adapter | None] = []
        for name in names:
            try:
                adapters.append(self._read_lora(name) if name else None)
            except InvalidValue as error:  # the others go on
                adapters.append(None)
                self.notes.append(str(error))
        # What is not asked for any more is let go of: a long night asks for many.
        self._lora_files = {
            key: adapter for key, adapter in self._lora_files.items() if any(adapter is one for one in adapters)
        }
        return adapters

    def _read_lora(self, name: str) -> lora.Adapter:
        if not self._architecture.lora_mixin:
            raise InvalidValue(f"LoRA {name}: a {self._architecture.title} model takes none")
        path = resolve(name, "loras", "LoRA")
        key = (str(path), path.stat().st_mtime)
        if key not in self._lora_files:
            self._lora_files[key] = lora.read(
                path, self._architecture.lora_mixin, self._denoiser | self._texts, self._model.denoiser.config
            )
        return self._lora_files[key]

    def _read_nets(self, names: tuple[str, ...]) -> tuple[dict[int, CompiledModule], Any]:
        *nets, depth = names
        found = {}
        for number, name in enumerate(nets, 1):
            try:
                if name:
                    found[number] = self._read_net(name)
            except InvalidValue as error:
                self.notes.append(str(error))
        self._net_files = {name: self._net_files[name] for name in nets if name in self._net_files}
        return found, control.read_depth(depth, self._model.denoiser) if depth else None

    def _read_net(self, name: str) -> CompiledModule:
        if not self._architecture.supports_controlnet:
            raise InvalidValue(f"ControlNet {name}: a {self._architecture.title} model takes none here")
        if name not in self._net_files:
            self._net_files[name] = CompiledModule(
                "control", control.read(resolve(name, "controlnets", "ControlNet"), self._model.denoiser)
            )
        return self._net_files[name]

    def _read_prompt(self, keys: tuple[str, str, str]) -> ImagePrompt | None:
        model, encoder, picture = keys
        if not picture:
            return None
        if not self._architecture.supports_controlnet:
            raise InvalidValue(f"image adapter {model}: a {self._architecture.title} model takes none here")
        if self._image_adapter is None or self._image_adapter[0] != (model, encoder):
            paths = resolve(model, "adapters", "image adapter"), resolve(encoder, "adapters", "image encoder")
            self._image_adapter = ((model, encoder), image_prompt.read(*paths, self._model.denoiser))
        second = self._second
        if picture.startswith("source ") and second is not None:
            return self._image_adapter[1].prompt(
                torch.from_numpy(second.pixels[..., :3]).permute(2, 0, 1).float() / 255
            )
        return self._image_adapter[1].prompt(read_image(picture))


def _setting(snapshot: Snapshot, number: int) -> ControlSetting:
    root = f"/control/{number}"
    weight = snapshot.real(f"{root}/weight") if snapshot.flag(f"{root}/on") else 0.0
    return ControlSetting(weight, snapshot.real(f"{root}/start"), snapshot.real(f"{root}/end"))


def resolve(name: str, folder: str, what: str) -> Path:
    """The file or folder called ``name``: a path, or one in ``folder`` here, with or without its ending. Raises BadValue."""
    for path in (Path(name).expanduser(), Path(folder) / name, Path(folder) / f"{name}.safetensors"):
        if path.exists():
            return path
    raise InvalidValue(f"{what} {name!r} is neither a path nor in {folder}/")


def read_image(name: str) -> Tensor:
    """A picture file as (3, H, W) in 0..1. Raises BadValue."""
    try:
        data = np.fromfile(Path(name).expanduser(), np.uint8)
    except OSError as error:
        raise InvalidValue(f"picture {name!r} cannot be read: {error.strerror}") from None
    pixels = cv2.imdecode(data, cv2.IMREAD_COLOR) if data.size else None
    if pixels is None:
        raise InvalidValue(f"picture {name!r} is in no known format")
    return torch.from_numpy(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)).permute(2, 0, 1).float() / 255


def controls(
    nets: Mapping[int, Any], rows: Sequence[tuple[Mapping[int, Tensor], Mapping[int, float], int]]
) -> ControlNetInputs | None:
    """The controls of a call from what each slot brings: pictures and weights by number, and its rows. None where all weigh nothing."""
    used = [n for n in nets if any(weights.get(n) and n in pictures for pictures, weights, _ in rows)]
    if not used:
        return None
    taken, weighed = [], []
    for n in used:
        like = next(pictures[n] for pictures, _, _ in rows if n in pictures)
        taken.append(
            torch.cat([pictures.get(n, like.new_zeros(count, *like.shape[1:])) for pictures, _, count in rows])
        )
        flat = [
            weights.get(n, 0.0) if n in pictures else 0.0 for pictures, weights, count in rows for _ in range(count)
        ]
        weighed.append(torch.tensor(flat, dtype=torch.float32).view(-1, 1, 1, 1).to(like.device))
    return ControlNetInputs(tuple(nets[n] for n in used), tuple(taken), tuple(weighed))
