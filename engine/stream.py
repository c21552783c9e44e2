"""The hot path: similarity, encode, batch, denoise, advance, decode.

Stream batch of StreamDiffusion (arXiv 2312.12491, section 3.1): one denoiser call a tick holds every
frame in flight, each at its own step. Whatever is stateful about a frame travels in its slot: its own
latents, its step and its length. So a new step list never disturbs the frames before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from engine import guidance
from engine.conditioning import Conditioner
from engine.mailbox import Frame, Pixels
from engine.models import Model
from engine.parameters import BadValue, Snapshot
from engine.schedule import Step, clean, noise, plan
from engine.similarity import SimilarityFilter


@dataclass(frozen=True)
class Plan:
    """What a frame goes through: its steps, and the noise of each, (n, C, h, w) float32."""

    steps: tuple[Step, ...]
    noises: Tensor


@dataclass
class Slot:
    """Frames in flight together (one, or the frame buffer's B): latents (B, C, h, w) float32, and where they are.

    ``number`` is that of the newest snapshot that was wholly in effect when they entered.
    """

    frames: Sequence[Frame]
    z: Tensor
    x: Tensor
    reference: Tensor
    plan: Plan
    number: int
    position: int = 0

    @property
    def step(self) -> Step:
        return self.plan.steps[self.position]


class Stream:
    """Frames in, transformed frames out, n − 1 ticks later. Not thread-safe: one loop owns it.

    ``width`` and ``height`` are the working size. ``rows`` counts the denoiser rows of the last tick,
    ``superseded`` the frames that a shortened step list left behind.
    """

    def __init__(self, model: Model, width: int, height: int) -> None:
        self.model, self.width, self.height = model, width, height
        self.conditioner = Conditioner(model.encode_prompt)
        self.similarity = SimilarityFilter()
        self.slots: list[Slot] = []
        self.rows = self.superseded = 0
        self._noises: dict[tuple[object, ...], Tensor] = {}
        self._coefficients: dict[tuple[object, ...], Tensor] = {}
        self._plan_key: tuple[object, ...] = ()
        self._settle = self._number = 0
        self.plan: Plan
        self.apply(Snapshot(), wait=True)

    def apply(self, snapshot: Snapshot, wait: bool = False) -> None:
        """Takes the parameters of ``snapshot`` from the next tick on. Prompts follow when encoded; ``wait`` waits for them.

        Raises BadValue where an explicit schedule does not suit the model: the steps then stay as they are, all else is taken.
        """
        wrong: BadValue | None = None
        steps = snapshot.whole("/steps")
        text = snapshot.text("/mode") == "text"
        seeds = (snapshot.whole("/seed"), snapshot.whole("/seed/2"))
        key = (steps, text or snapshot.real("/strength"), snapshot.text("/schedule"), seeds, snapshot.real("/seed/mix"))
        if key != self._plan_key:
            self._plan_key = key
            try:
                made = plan(self.model.noising, steps, 1.0 if text else snapshot.real("/strength"), snapshot.text("/schedule"))
            except BadValue as error:
                made, wrong = self.plan.steps, error
            self.plan = Plan(made, self._noise(seeds, snapshot.real("/seed/mix"), len(made)))
        self.snapshot, self._text = snapshot, text
        self.gamma, self.delta = snapshot.real("/guidance"), snapshot.real("/guidance/delta")
        self.mode = snapshot.text("/guidance/mode")
        self._wait = wait
        self.conditioner.update(snapshot, wait)
        self._settle = len(self.plan.steps)  # that many ticks until the change is seen: none of them is skipped
        if wrong is not None:
            raise wrong

    @torch.inference_mode()
    def step(self, frames: Sequence[Frame]) -> list[Frame] | None:
        """One tick: ``frames`` enter together, the frames that finish are returned, none while the batch fills.

        No frames at all drains the batch. None means that the similarity filter skipped: the last output stands.
        """
        pictures = self._pictures(frames)
        if self._skips(pictures):
            return None
        self._enter(frames, pictures)
        if not self.slots:
            return []
        denoised = self._denoise()
        finished = self._advance(denoised)
        return self._decode(finished)

    def restart(self) -> None:
        """Forgets the frames in flight and the similarity filter's last frame."""
        self.slots.clear()
        self.similarity = SimilarityFilter()

    def close(self) -> None:
        """Ends the prompt thread."""
        self.conditioner.close()

    def _skips(self, pictures: Tensor | None) -> bool:
        if pictures is None or not self.snapshot.flag("/similarity"):
            return False
        newest = pictures[-1] * 0.5 + 0.5
        if self._settle > 0:
            self._settle -= 1
            self.similarity.processed(newest)
            return False
        get = self.snapshot
        threshold, most = get.real("/similarity/threshold"), get.whole("/similarity/max_skip")
        return self.similarity.skips(newest, threshold, most, get.text("/similarity/measure"))

    def _enter(self, frames: Sequence[Frame], pictures: Tensor | None) -> None:
        """x₁ = a·z + b·ε₁; in text mode there is no z, and x₁ = ε₁."""
        self.conditioner.update(self.snapshot, self._wait)
        if self.conditioner.settled:
            self._number = self.snapshot.number
        if pictures is None:
            return
        epsilon, first = self.plan.noises[0], self.plan.steps[0]
        if self._text:
            x = epsilon.expand(len(frames), -1, -1, -1)
            z = torch.zeros_like(x)
        else:
            z = self.model.encode(pictures)
            x = first.a * z + first.b * epsilon
        self.slots.append(Slot(frames, z, x, z, self.plan, self._number))

    def _denoise(self) -> Tensor:
        """D for every row in flight, (rows, C, h, w) float32: one denoiser call, guided, with the model's boundary."""
        sizes = tuple(len(slot.frames) for slot in self.slots)
        x = torch.cat([slot.x for slot in self.slots])
        t, a, b, c_skip, c_out = self._coefficients_of(tuple(slot.step for slot in self.slots), sizes)
        negatives = self._negative_rows(sizes)
        # The rows that also need the negative prompt are the last ones: the frames that have just entered, or all.
        every = torch.arange(len(x), device=x.device)
        rows = torch.cat([every, every[len(x) - negatives :]]) if negatives else slice(None)
        output = self.model.denoise(x[rows], t[rows].flatten(), self.conditioner.rows(len(x), negatives))
        F = clean(self.model.noising.prediction, output, x[rows], a[rows], b[rows])
        self.rows = len(F)
        return c_out * self._guided(F[: len(x)], F[len(x) :], x, a) + c_skip * x

    def _negative_rows(self, sizes: tuple[int, ...]) -> int:
        """How many rows are denoised once more under the negative prompt."""
        extra = guidance.extra_rows(self.mode, self.gamma)
        if extra == "first":
            return sizes[-1] if self.slots[-1].position == 0 else 0
        return sum(sizes) if extra == "all" else 0

    def _guided(self, F: Tensor, negative: Tensor, x: Tensor, a: Tensor) -> Tensor:
        if self.gamma == 1.0 or self.mode == "none":
            return F
        if self.mode == "full":
            return guidance.full(F, negative, self.gamma)
        if self.mode == "onetime" and len(negative):
            self.slots[-1].reference = negative
        reference = torch.cat([slot.z if self.mode == "self" else slot.reference for slot in self.slots])
        return guidance.residual(F, reference, x, a, self.gamma, self.delta)

    def _advance(self, denoised: Tensor) -> list[tuple[Slot, Tensor]]:
        """x ← a·D + b·ε of the next step for every slot that has one; those that have none are finished and leave."""
        finished: list[tuple[Slot, Tensor]] = []
        staying: list[Slot] = []
        for slot, D in zip(self.slots, denoised.split([len(s.frames) for s in self.slots]), strict=True):
            if slot.position + 1 == len(slot.plan.steps):
                self.superseded += sum(len(older.frames) for older in staying)
                staying.clear()  # older frames of a longer plan come too late now
                finished.append((slot, D))
                continue
            if len(slot.plan.steps) == len(self.plan.steps):
                slot.plan = self.plan
            slot.position += 1
            slot.x = slot.step.a * D + slot.step.b * slot.plan.noises[slot.position]
            staying.append(slot)
        self.slots = staying
        return finished

    def _decode(self, finished: list[tuple[Slot, Tensor]]) -> list[Frame]:
        if not finished:
            return []
        pictures = self.model.decode(torch.cat([D for _, D in finished]))
        pixels = to_pixels(pictures)
        frames = [(frame, slot.number) for slot, _ in finished for frame in slot.frames]
        return [Frame(p, f.sequence, f.captured_at, number) for p, (f, number) in zip(pixels, frames, strict=True)]

    def _pictures(self, frames: Sequence[Frame]) -> Tensor | None:
        """RGBA frames → (B, 3, H, W) float32 in -1..1 on the device, at the working size."""
        if not frames:
            return None
        loaded = []
        for frame in frames:
            picture = torch.from_numpy(frame.pixels).to(self.model.device)[..., :3].permute(2, 0, 1)[None].float()
            if frame.size != (self.width, self.height):
                picture = torch.nn.functional.interpolate(picture, (self.height, self.width), mode="bilinear", antialias=True)
            loaded.append(picture)
        return torch.cat(loaded) / 127.5 - 1.0

    def _coefficients_of(self, steps: tuple[Step, ...], sizes: tuple[int, ...]) -> tuple[Tensor, ...]:
        """t, a, b, c_skip, c_out of every row, (rows, 1, 1, 1) each, kept on the device for as long as the steps stay."""
        key = (steps, sizes)
        if key not in self._coefficients:
            if len(self._coefficients) > 64:
                self._coefficients.clear()
            rows = [(s.t, s.a, s.b, s.c_skip, s.c_out) for s, size in zip(steps, sizes, strict=True) for _ in range(size)]
            self._coefficients[key] = torch.tensor(rows, dtype=torch.float32).T[..., None, None, None].to(self.model.device)
        return self._coefficients[key].unbind(0)

    def _noise(self, seeds: tuple[int, int], mix: float, steps: int) -> Tensor:
        key = (seeds, mix, steps)
        if key not in self._noises:
            if len(self._noises) > 64:
                self._noises.clear()
            shape = self.model.latent_shape(self.width, self.height)
            self._noises[key] = noise(seeds, mix, steps, shape).to(self.model.device)
        return self._noises[key]


def to_pixels(pictures: Tensor) -> list[Pixels]:
    """(B, 3, H, W) in -1..1 → B pictures RGBA uint8 (H, W, 4), opaque."""
    opaque = torch.nn.functional.pad(pictures.float().clamp(-1, 1) * 127.5 + 127.5, (0, 0, 0, 0, 0, 1), value=255.0)
    return list(opaque.round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu().numpy())
