"""The hot path: prepare, filter, encode, batch, denoise, advance, decode.

Stream batch of StreamDiffusion (arXiv 2312.12491, section 3.1): one denoiser call a tick holds every
frame in flight, each at its own step. Whatever is stateful about a frame travels in its slot: its own
latents, its step and its length. So a new step list never disturbs the frames before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace

import torch
from torch import Tensor

from engine.adapters import AdapterSet
from engine.adapters.controlnet import ControlledRows
from engine.diffusion import guidance
from engine.diffusion.deep_reuse import DeepReuse
from engine.diffusion.denoiser_call import DenoiserCall
from engine.diffusion.frame_inputs import FrameInputs
from engine.diffusion.planner import Planner
from engine.diffusion.region_sampler import RegionSampler
from engine.diffusion.regional_denoiser import RegionalDenoiser
from engine.diffusion.schedule import advance
from engine.diffusion.second_source import SecondSource
from engine.diffusion.similarity import SimilarityFilter
from engine.diffusion.slots import Plan, Slot
from engine.diffusion.smoothing import LatentSmoother
from engine.diffusion.steering import Steering
from engine.diffusion.stream_stats import StreamStats
from engine.image.convert import cat_batch, to_pixels
from engine.image.effects import ImageEffects, PreparedInput
from engine.image.hooks import Hooks
from engine.image.ops import DeviceValues
from engine.image.temporal import Motion
from engine.models import Model
from engine.runtime.cuda_streams import CudaStreams, OutputSums, PendingOutput, cuda_streams_of
from engine.runtime.device_lock import hold_device_lock
from engine.runtime.threads import on_one_thread
from engine.shared.frame import Frame
from engine.shared.snapshot import Snapshot

#: The output of a tick that finishes no frame.
NO_OUTPUT = PendingOutput((), torch.empty(0), OutputSums(torch.zeros(3), torch.float32))


class Stream:
    """Frames in, transformed frames out, n − 1 ticks later. Not thread-safe: one loop owns it.

    ``width`` and ``height`` are the working size. A ``blocking`` stream waits for prompts and adapter files, for
    offline rendering; a live one never does after ``settle``. ``shared_adapters`` are those of another stream on the
    same model, which keeps steering them until this one takes over.
    """

    def __init__(
        self,
        model: Model,
        width: int,
        height: int,
        shared_adapters: AdapterSet | None = None,
        hooks: Hooks | None = None,
        blocking: bool = False,
        cuda_streams: CudaStreams | None = None,
    ) -> None:
        self.model, self.width, self.height = model, width, height
        self._cuda_streams = cuda_streams or cuda_streams_of(model.device)
        self._inputs = FrameInputs(model.device, width, height, self._cuda_streams.record)
        self.steering = Steering(model, shared_adapters, blocking)
        self.planner = Planner(model, width, height, self._inputs.memo)
        sampler = DeepReuse if model.architecture.caches_deep_features else RegionalDenoiser
        self.regions: RegionSampler = sampler(model, width, height)
        self.hooks = hooks or Hooks(None)
        self.effects, self.similarity = ImageEffects(self._inputs.memo), SimilarityFilter()
        self.smoother = LatentSmoother()
        self.slots: list[Slot] = []
        self.stats = StreamStats()
        self._restarted = True
        self.apply(Snapshot())

    @property
    def adapters(self) -> AdapterSet:
        """What is added to the model."""
        return self.steering.adapters

    @property
    def second(self) -> SecondSource:
        """The newest frame of the second source."""
        return self._inputs.second

    @property
    def device_lock(self) -> AbstractContextManager[object]:
        """The context in which its operators run."""
        return self.steering.device_lock

    @property
    def plan(self) -> Plan:
        """The plan of the frames that enter next."""
        with self.device_lock:  # its noises may be uploaded now
            return self.planner.plan

    @hold_device_lock
    def apply(self, snapshot: Snapshot) -> None:
        """Follow ``snapshot`` from the next tick on; prompts and adapter files follow when they are ready.

        Raises InvalidValue where an explicit schedule does not fit the model: the steps then stay, all else applies.
        """
        self.snapshot = snapshot
        self.effects.apply(snapshot.effects)
        self.steering.memory.configure(snapshot.diffusion.memory)
        self.regions.apply(snapshot.diffusion.regions)
        self.steering.apply(snapshot, self.second.frame)
        try:
            self.planner.update(snapshot.diffusion, snapshot.looks)
        finally:
            self.similarity.hold(len(self.planner.steps))  # until the change reaches the output

    def settle(self) -> None:
        """Wait until the prompts and adapters of the snapshot are in effect, or have failed."""
        self.steering.settle(self.second.frame)

    def take_over(self, previous: Stream) -> None:
        """Become the stream that is shown, in place of ``previous``, and count on from its counts."""
        self.stats, self.regions.counts = replace(previous.stats), previous.regions.counts
        self.steering.lead(previous.steering)
        self.second.show(previous.second.frame)

    def restart(self) -> None:
        """Forget the frames in flight and everything that is remembered of earlier ones."""
        self.slots.clear()
        self.discard_not_finite()

    @hold_device_lock
    def discard_not_finite(self) -> None:
        """Forget the frames in flight that hold NaN or infinity, and what is remembered of frames before them."""
        self.slots = [slot for slot in self.slots if slot.is_finite()]
        self.similarity.reset()
        self.smoother.reset()
        self.effects.reset()
        self.steering.memory.reset()
        self.regions.reset()
        self._restarted = True

    def close(self) -> None:
        """End the prompt thread."""
        self.steering.close()

    @torch.inference_mode()
    def step(self, frames: Sequence[Frame]) -> list[Frame] | None:
        """Run one tick: ``frames`` enter together, the frames that finish are returned, none while the batch fills.

        No frames at all drain the batch. None means that the similarity filter skipped: the last output stays. Raises
        NotFinite.
        """
        pending = self.begin(frames)
        return None if pending is None else pending.result()

    @hold_device_lock
    @torch.inference_mode()
    def begin(self, frames: Sequence[Frame]) -> PendingOutput | None:
        """Run ``step``, but on a GPU the next tick may begin while the finished frames are still decoded."""
        with self._input_stream():
            motions = self._upload(frames)
            prepared = self._prepare(frames, motions)
            if self._skips(prepared):
                self.stats.skipped += len(frames)
                return None
        self.steering.follow(self.second.frame)
        self._encode(frames, prepared)
        if not self.slots:
            return NO_OUTPUT
        if frames and self._is_still():
            self.slots.pop()
            self.stats.skipped += len(frames)
            return None
        denoised = self._denoise()
        finished = self._advance(denoised)
        self._cuda_streams.record(*(tensor for slot, D in finished for tensor in (slot.z, D)))  # the smoother's history
        with self._cuda_streams.output_stream():
            return self._decode(finished)

    def _input_stream(self) -> AbstractContextManager[object]:
        """Enter the CUDA stream of the inputs.

        It waits for everything after a restart, and for the last output where an input or an effect depends on it.
        """
        restarted, self._restarted = self._restarted, False
        return self._cuda_streams.input_stream(restarted, self.effects.feeds_back or self.hooks.is_dynamic)

    def _upload(self, frames: Sequence[Frame]) -> Sequence[Motion]:
        """Upload all that this tick needs of the host, in one copy; return the motion of ``frames``.

        On a CPU there is nothing to upload, and the motion is estimated where it is needed.
        """
        if not self._inputs.is_remote:
            return ()
        with on_one_thread():
            motions = self.effects.estimate_motions(frames, self.width, self.height)
        return self._inputs.send(frames, motions, self._values(frames))

    def _values(self, frames: Sequence[Frame]) -> DeviceValues:
        """Return the values that this tick reads on the device, apart from pictures."""
        steps, sizes = [slot.step for slot in self.slots], [len(slot.frames) for slot in self.slots]
        values = self.effects.values(self.width, self.height)
        if frames:
            values |= self.planner.values(self.snapshot.diffusion.noise_walk, frames[-1].captured_at)
            steps, sizes = [*steps, self.planner.steps[0]], [*sizes, len(frames)]
        if not steps:
            return values
        negatives = guidance.negative_rows(self.snapshot.diffusion.guidance, sizes, bool(frames))
        return values | self.planner.coefficients.row_values(tuple(steps), tuple(sizes), negatives)

    def _prepare(self, frames: Sequence[Frame], motions: Sequence[Motion] = ()) -> PreparedInput | None:
        if not frames:
            return None
        alpha = None
        with on_one_thread():
            pictures = cat_batch([self._inputs.to_picture(frame) for frame in frames])
            if self.effects.uses_alpha:
                alpha = cat_batch([self._inputs.to_alpha(frame) for frame in frames])
        prepared = self.effects.preprocess(pictures, alpha, self.second.picture)
        self._inputs.clear()
        pictures = self.hooks.run("before", prepared.pictures, self.snapshot.hooks, frames[-1].captured_at)
        return PreparedInput(pictures, prepared.mask, motions)

    @property
    def _changes_by_itself(self) -> bool:
        """Whether the output changes also where the input does not."""
        return self.effects.feeds_back or self.snapshot.diffusion.noise_walk.rate > 0.0 or self.hooks.is_dynamic

    def _is_still(self) -> bool:
        """Return whether the frame that has entered would leave the output as it is."""
        if self._changes_by_itself or self.snapshot.diffusion.smoothing > 0.0:
            return False
        return self.regions.is_still(self.slots[-1], self.steering.conditioner, self.snapshot.diffusion.guidance)

    def _skips(self, prepared: PreparedInput | None) -> bool:
        settings = self.snapshot.similarity
        if prepared is None or not settings.enabled or self._changes_by_itself:
            return False
        with on_one_thread():
            return self.similarity.skips(prepared.pictures[-1], settings)

    def _encode(self, frames: Sequence[Frame], prepared: PreparedInput | None) -> None:
        """Let frames enter as x₁ = a·z + b·ε₁; in text mode there is no z, and x₁ = ε₁."""
        if prepared is None:
            self._cuda_streams.sync_input()
            return
        diffusion, second, z = self.snapshot.diffusion, self.second.picture, None
        self.effects.enter(prepared)
        if not diffusion.text_mode:
            with self._cuda_streams.input_stream():
                z = self.model.encode(self.effects.apply_feedback(prepared.pictures))
            self._cuda_streams.sync_input(z)
        fields = (motion.field for motion in prepared.motions)
        self._cuda_streams.sync_input(prepared.pictures, prepared.mask, second, *fields)
        self.planner.walk(diffusion.noise_walk, frames[-1].captured_at)
        if z is None:
            x = self.plan.noises[0].expand(len(frames), -1, -1, -1)
            z = torch.zeros_like(x)
        else:
            x = (self.plan.steps[0].a * z).add_(self.plan.initial_noise)
        images = self.adapters.controlnet.control_images(prepared.pictures, second)
        self.slots.append(Slot(frames, prepared, z, x, z, self.plan, self.steering.snapshot_number, images))

    def _denoise(self) -> Tensor:
        """Return D for every row in flight, (rows, C, h, w) float32: one denoiser call, guided, with the boundary."""
        settings = self.snapshot.diffusion.guidance
        sizes = tuple(len(slot.frames) for slot in self.slots)
        x = cat_batch([slot.x for slot in self.slots])
        negatives = guidance.negative_rows(settings, sizes, self.slots[-1].position == 0)
        rows = self.planner.coefficients.rows(tuple(slot.step for slot in self.slots), sizes, negatives)
        arrangement = tuple((slot.position, slot.steps, len(slot.frames)) for slot in self.slots)
        self.adapters.begin_call(self.steering.memory, arrangement, negatives)
        controls = self.adapters.controlnet.controls(
            [ControlledRows(slot.control_images, slot.position, slot.steps, len(slot.frames)) for slot in self.slots]
        )
        of_call, conditioner = x[rows.index], self.steering.conditioner
        condition = conditioner.rows(len(x), negatives)
        controls = controls and controls.rows(rows.index)
        if self.regions.is_active:
            call = DenoiserCall(of_call, rows.t, rows.a, condition, settings, self.slots, negatives, controls)
            output = self.regions.denoise(call, conditioner)
        else:
            output = self.model.denoise(of_call, rows.t, condition, settings.embedded, controls)
        self.stats.rows = len(output)
        if settings.active:
            F = rows.of_x * of_call + rows.of_output * output
            D = rows.c_out * self._guide(F[: len(x)], F[len(x) :], x, rows.a) + rows.c_skip * x
        else:
            D = torch.addcmul(rows.unguided_of_x * x, rows.unguided_of_output, output)
        self.regions.observe(x, D)
        return D

    def _guide(self, F: Tensor, negative: Tensor, x: Tensor, a: Tensor) -> Tensor:
        settings = self.snapshot.diffusion.guidance
        if settings.mode == "full":
            return guidance.full(F, negative, settings.scale)
        if settings.mode == "onetime" and len(negative):
            self.slots[-1].reference = negative
        reference = cat_batch([slot.z if settings.mode == "self" else slot.reference for slot in self.slots])
        return guidance.residual(F, reference, x, a, settings.scale, settings.delta)

    def _advance(self, denoised: Tensor) -> list[tuple[Slot, Tensor]]:
        """Move every slot on to its next step; return those that have none with their D: they leave."""
        finished: list[tuple[Slot, Tensor]] = []
        staying: list[Slot] = []
        for slot, D in zip(self.slots, denoised.split([len(s.frames) for s in self.slots]), strict=True):
            if slot.is_last_step:
                self.stats.superseded += sum(len(older.frames) for older in staying)
                staying.clear()  # older frames of a longer plan would come too late
                finished.append((slot, D))
                continue
            step = slot.step
            if slot.steps == len(self.plan.steps):
                slot.plan = self.plan
            slot.position += 1
            slot.x = advance(slot.x, D, step, slot.step, slot.plan.noises[slot.position])
            staying.append(slot)
        self.slots = staying
        return finished

    def _decode(self, finished: list[tuple[Slot, Tensor]]) -> PendingOutput:
        if not finished:
            return NO_OUTPUT
        hooks, now = self.snapshot.hooks, finished[-1][0].frames[-1].captured_at
        smoothing = self.snapshot.diffusion.smoothing
        latents = cat_batch([self.smoother.smooth(slot.z, D, smoothing) for slot, D in finished])
        latents = self.hooks.run("latent", latents, hooks, now)
        decoded = self.model.decode(latents)
        encoded = cat_batch([slot.z for slot, _ in finished]).sum()
        sums = OutputSums(torch.stack([encoded, latents.sum(), decoded.sum()]), self.model.dtype)
        if self.hooks.is_dynamic and decoded.device.type == "cpu":
            sums.check()  # now: otherwise an effect would be blamed for it
        pictures = self.hooks.run("after", decoded, hooks, now)
        pictures = pictures if pictures is decoded else pictures.clamp(0, 1)
        pixels = to_pixels(self.effects.postprocess(pictures, [slot.prepared for slot, _ in finished]))
        frames = [(frame, slot.snapshot_number) for slot, _ in finished for frame in slot.frames]
        checks = self.hooks.take_checks()
        self._cuda_streams.record(*(check.is_finite for check in checks))
        return PendingOutput(
            frames, pixels, sums, (finished, latents), [check.is_finite for check in checks],
            lambda is_finite: self.hooks.judge(checks, is_finite),
        )  # fmt: skip
