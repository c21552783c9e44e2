"""The hot path: take, similarity, encode, batch, denoise, advance, decode.

Stream batch of StreamDiffusion (arXiv 2312.12491, section 3.1): one denoiser call a tick holds every
frame in flight, each at its own step. Whatever is stateful about a frame travels in its slot: its own
latents, its step and its length. So a new step list never disturbs the frames before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from math import isfinite

import torch
from torch import Tensor

from engine.adapters.adapters import Adapters, controls
from engine.adapters.attention import KeyValueMemory
from engine.diffusion import guidance
from engine.diffusion.coefficients import Coefficients
from engine.diffusion.conditioning import Conditioner
from engine.diffusion.noise_walk import NoiseWalk
from engine.diffusion.schedule import advance, plan
from engine.diffusion.similarity import SimilarityFilter
from engine.diffusion.slots import Plan, Slot
from engine.image.convert import cat_batch, to_alpha, to_picture, to_pixels
from engine.image.effects import ImageEffects, PreparedInput
from engine.image.hooks import Hooks
from engine.models import Model
from engine.runtime.cuda_streams import NotFinite, PendingOutput, cuda_streams_of
from engine.shared.frame import Frame
from engine.shared.parameter import InvalidValue
from engine.shared.snapshot import Snapshot

#: What a tick gives that finishes no frame.
NONE = PendingOutput((), torch.empty(0), torch.tensor(0.0))
#: Mean change of a latent cell, in the denoiser's unit range, that counts as motion.
STILL = 0.15


class Stream:
    """Frames in, transformed frames out, n − 1 ticks later. Not thread-safe: one loop owns it.

    ``width`` and ``height`` are the working size. ``second`` is the newest frame of the second source, for controls and masks.
    ``rows`` counts the denoiser rows of the last tick, ``superseded`` the frames that a shortened step list left behind.
    ``adapters`` are those of another stream on the same model, which it goes on steering until this one ``leads``.
    """

    def __init__(
        self, model: Model, width: int, height: int, adapters: Adapters | None = None, hooks: Hooks | None = None
    ) -> None:
        self.model, self.width, self.height = model, width, height
        self.leads = adapters is None
        self.adapters = adapters or Adapters(model)
        self.conditioner = Conditioner(model.encode_prompt, model.architecture.encode_negative, self.adapters.dressed)
        self.hooks = hooks or Hooks(None)
        self.similarity, self.effects, self.memory = SimilarityFilter(), ImageEffects(), KeyValueMemory()
        self.slots: list[Slot] = []
        self.second: Frame | None = None
        self._second: tuple[Frame, Tensor] | None = None
        self.rows = self.superseded = 0
        self._lanes, self._fresh = cuda_streams_of(model.device), True
        self._tables = Coefficients(model, width, height)
        self._travel = NoiseWalk(self._tables)
        self._smoothed: tuple[Tensor, Tensor] | None = None
        self._plan_key: tuple[object, ...] = ()
        self._settle = self._number = 0
        self._followed = False
        self.plan: Plan
        self.apply(Snapshot(), wait=True)

    def apply(self, snapshot: Snapshot, wait: bool = False) -> None:
        """Takes the parameters of ``snapshot`` from the next tick on. Prompts and adapters follow when ready; ``wait`` waits for them.

        Raises BadValue where an explicit schedule does not suit the model: the steps then stay as they are, all else is taken.
        """
        wrong: InvalidValue | None = None
        self.snapshot, self._text = snapshot, snapshot.text("/mode") == "text"
        strength = 1.0 if self._text else snapshot.real("/strength")
        steps, eta, explicit = snapshot.whole("/steps"), snapshot.real("/eta"), snapshot.text("/schedule")
        seeds = tuple((look["/seed"], look["/seed/2"], look["/seed/mix"], share) for look, share in snapshot.looks)
        key = (steps, strength, eta, explicit, seeds)
        if key != self._plan_key:
            self._plan_key = key
            try:
                made = plan(
                    self.model.noise_schedule,
                    steps,
                    strength,
                    explicit,
                    self.model.token_count(self.width, self.height),
                    eta,
                )
            except InvalidValue as error:
                made, wrong = self.plan.steps, error
            self.plan = Plan(made, self._tables.mixed(snapshot.looks, len(made)))
        self.gamma, self.delta = snapshot.real("/guidance"), snapshot.real("/guidance/delta")
        self.mode = snapshot.text("/guidance/mode")
        self.effects.apply(snapshot)
        self.memory.strength, self.memory.length = snapshot.real("/consistency"), snapshot.whole("/consistency/frames")
        self.memory.merge = snapshot.text("/consistency/merge")
        self._wait, self._followed = wait, False
        self._follow()
        self._settle = len(self.plan.steps)  # that many ticks until the change is seen: none of them is skipped
        if wrong is not None:
            raise wrong

    @torch.inference_mode()
    def step(self, frames: Sequence[Frame]) -> list[Frame] | None:
        """One tick: ``frames`` enter together, the frames that finish are returned, none while the batch fills.

        No frames at all drains the batch. None means that the similarity filter skipped: the last output stands. Raises NotFinite.
        """
        begun = self.begin(frames)
        return None if begun is None else begun.result()

    @torch.inference_mode()
    def begin(self, frames: Sequence[Frame]) -> PendingOutput | None:
        """``step``, but on a GPU the frames that finish need not be out yet: the next tick may begin while they are decoded."""
        with self._entering():
            taken = self._taken(frames)
            if self._skips(taken):
                return None
        self._follow()
        self._enter(frames, taken)
        if not self.slots:
            return NONE
        denoised = self._denoise()
        finished = self._advance(denoised)
        with self._lanes.output_stream():
            return self._decode(finished)

    def restart(self) -> None:
        """Forgets the frames in flight and everything that was kept of earlier ones."""
        self.slots.clear()
        self.similarity, self._smoothed, self._fresh = SimilarityFilter(), None, True
        self.effects.reset()
        self.memory.begin(None)

    def close(self) -> None:
        """Ends the prompt thread."""
        self.conditioner.close()

    def _follow(self) -> None:
        """Takes what has become ready since: adapters, then prompts as they read them."""
        if self._followed:
            return
        if self.leads:
            self.adapters.update(self.snapshot, self._wait, self.second)
        self.conditioner.update(self.snapshot, self._wait, self.adapters.style(self.snapshot))
        if self.conditioner.settled and not self.adapters.busy:
            self._number = self.snapshot.number
            self._followed = self.snapshot.text("/reference") != "source"  # that one goes on changing

    def _entering(self) -> AbstractContextManager[object]:
        """The lane of the inputs: after all else at first, and after the last output where the input, or an effect, is made of it."""
        fresh, self._fresh = self._fresh, False
        return self._lanes.input_stream(fresh, self.snapshot.real("/feedback") > 0.0 or self.hooks.is_dynamic)

    def _taken(self, frames: Sequence[Frame]) -> PreparedInput | None:
        if not frames:
            return None
        pictures = cat_batch([self._picture(frame) for frame in frames])
        alpha = None
        if self.effects.uses_alpha:
            alpha = cat_batch([to_alpha(frame.pixels, self.width, self.height, self.model.device) for frame in frames])
        taken = self.effects.preprocess(pictures, alpha, self._beside())
        return PreparedInput(
            self.hooks.run("before", taken.pictures, self.snapshot, frames[-1].captured_at), taken.mask
        )

    def _skips(self, taken: PreparedInput | None) -> bool:
        get = self.snapshot
        moving = get.real("/feedback") > 0.0 or get.real("/seed/travel") > 0.0 or self.hooks.is_dynamic
        if taken is None or moving or not get.flag("/similarity"):
            return False
        newest = taken.pictures[-1]
        if self._settle > 0:
            self._settle -= 1
            self.similarity.processed(newest)
            return False
        threshold, most = get.real("/similarity/threshold"), get.whole("/similarity/max_skip")
        return self.similarity.skips(newest, threshold, most, get.text("/similarity/measure"))

    def _enter(self, frames: Sequence[Frame], taken: PreparedInput | None) -> None:
        """x₁ = a·z + b·ε₁; in text mode there is no z, and x₁ = ε₁."""
        if taken is None:
            return
        walked = self._travel.noises(self.snapshot, frames[-1].captured_at, len(self.plan.steps))
        if walked is not None:
            self.plan = Plan(self.plan.steps, walked)
        if self._text:
            x = self.plan.noises[0].expand(len(frames), -1, -1, -1)
            z = torch.zeros_like(x)
        else:
            with self._lanes.input_stream():
                z = self.model.encode(self.effects.apply_feedback(taken.pictures))
            self._lanes.sync_input(z)
            x = (self.plan.steps[0].a * z).add_(self.plan.start)
        beside = self._beside()
        self._lanes.sync_input(taken.pictures, taken.mask, beside)
        maps = self.adapters.maps(self.snapshot, taken.pictures, beside)
        self.slots.append(Slot(frames, taken, z, x, z, self.plan, self._number, maps))

    def _denoise(self) -> Tensor:
        """D for every row in flight, (rows, C, h, w) float32: one denoiser call, guided, with the model's boundary."""
        sizes = tuple(len(slot.frames) for slot in self.slots)
        x = cat_batch([slot.x for slot in self.slots])
        # The rows that also need the negative prompt are the last ones: the frames that have just entered, or all.
        negatives = self._negative_rows(sizes)
        rows = self._tables.rows(tuple(slot.step for slot in self.slots), sizes, negatives)
        self.adapters.begin(
            self.memory,
            tuple((slot.position, len(slot.plan.steps), len(slot.frames)) for slot in self.slots),
            negatives,
        )
        steering = controls(
            self.adapters.nets,
            [(s.maps, self.adapters.weights(s.position, len(s.plan.steps)), len(s.frames)) for s in self.slots],
        )
        output = self.model.denoise(
            x[rows.index],
            rows.t,
            self.conditioner.rows(len(x), negatives),
            self.snapshot.real("/guidance/embedded"),
            steering and steering.rows(rows.index),
        )
        self.rows = len(output)
        if self.gamma == 1.0 or self.mode == "none":
            return torch.addcmul(rows.unguided_of_x * x, rows.unguided_of_output, output)
        F = rows.of_x * x[rows.index] + rows.of_output * output
        return rows.c_out * self._guided(F[: len(x)], F[len(x) :], x, rows.a) + rows.c_skip * x

    def _negative_rows(self, sizes: tuple[int, ...]) -> int:
        """How many rows are denoised once more under the negative prompt."""
        extra = guidance.extra_rows(self.mode, self.gamma)
        if extra == "first":
            return sizes[-1] if self.slots[-1].position == 0 else 0
        return sum(sizes) if extra == "all" else 0

    def _guided(self, F: Tensor, negative: Tensor, x: Tensor, a: Tensor) -> Tensor:
        if self.mode == "full":
            return guidance.full(F, negative, self.gamma)
        if self.mode == "onetime" and len(negative):
            self.slots[-1].reference = negative
        reference = cat_batch([slot.z if self.mode == "self" else slot.reference for slot in self.slots])
        return guidance.residual(F, reference, x, a, self.gamma, self.delta)

    def _advance(self, denoised: Tensor) -> list[tuple[Slot, Tensor]]:
        """Every slot that has a next step moves on to it; those that have none are finished and leave."""
        finished: list[tuple[Slot, Tensor]] = []
        staying: list[Slot] = []
        for slot, D in zip(self.slots, denoised.split([len(s.frames) for s in self.slots]), strict=True):
            if slot.position + 1 == len(slot.plan.steps):
                self.superseded += sum(len(older.frames) for older in staying)
                staying.clear()  # older frames of a longer plan come too late now
                finished.append((slot, D))
                continue
            was = slot.step
            if len(slot.plan.steps) == len(self.plan.steps):
                slot.plan = self.plan
            slot.position += 1
            slot.x = advance(slot.x, D, was, slot.step, slot.plan.noises[slot.position])
            staying.append(slot)
        self.slots = staying
        return finished

    def _decode(self, finished: list[tuple[Slot, Tensor]]) -> PendingOutput:
        if not finished:
            return NONE
        now = finished[-1][0].frames[-1].captured_at
        latents = self.hooks.run(
            "latent", cat_batch([self._steadied(slot.z, D) for slot, D in finished]), self.snapshot, now
        )
        decoded = self.model.decode(latents)
        total = latents.sum() + decoded.sum()
        if self.hooks.is_dynamic and not isfinite(total):
            raise NotFinite  # now: effects would be blamed for it
        pictures = self.hooks.run("after", decoded, self.snapshot, now)
        pictures = pictures if pictures is decoded else pictures.clamp(0, 1)
        pixels = to_pixels(self.effects.postprocess(pictures, [slot.taken for slot, _ in finished]))
        return PendingOutput(
            [(frame, slot.number) for slot, _ in finished for frame in slot.frames], pixels, total, (finished, latents)
        )

    def _steadied(self, z: Tensor, D: Tensor) -> Tensor:
        """D with a share of the latent before it, frame by frame, in the cells where the input's latent z has not moved."""
        share = self.snapshot.real("/smoothing")
        if share <= 0.0:
            self._smoothed = None
            return D
        steady = []
        for one, latent in zip(z, D, strict=True):
            if self._smoothed is not None:
                before, kept = self._smoothed
                still = torch.exp(-(((one - before).abs().mean(0, keepdim=True) / STILL) ** 2))
                latent = torch.lerp(latent, kept, share * still)
            self._smoothed = (one, latent)
            steady.append(latent)
        return torch.stack(steady)

    def _beside(self) -> Tensor | None:
        """The newest frame of the second source, (1, 3, H, W) in 0..1, made a tensor once."""
        if self.second is None:
            return None
        if self._second is None or self._second[0] is not self.second:
            self._second = (self.second, self._picture(self.second))
        return self._second[1]

    def _picture(self, frame: Frame) -> Tensor:
        """(1, 3, H, W) in 0..1 on the device, at the working size."""
        return to_picture(frame.pixels, self.width, self.height, self.model.device)
