"""The denoiser call of a stream with region-adaptive sampling: which rows are computed whole, and which in part.

``focus`` is the published method, along the steps of a frame: its cache travels with the frame. ``change`` works along
the frames: the cache belongs to a step, and each frame updates what is new in it. ``both`` is ``change`` with the rest
of the budget spent where the model's focus is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from engine.diffusion import regions
from engine.diffusion.conditioning import Conditioner
from engine.diffusion.denoiser_call import DenoiserCall, epoch_of
from engine.diffusion.region_cache import RegionCache
from engine.diffusion.region_map import PendingMap
from engine.diffusion.region_sampler import RegionSampler
from engine.diffusion.slots import Slot
from engine.models import Condition, Model
from engine.models.regional.base import TokenChoice
from engine.runtime.memo import Memo
from engine.shared.region_settings import RegionSettings
from engine.shared.settings import GuidanceSettings


class RegionalDenoiser(RegionSampler):
    """Calls the denoiser of one stream. ``tokens`` is N. ``counts`` are those of the tokens while some may be skipped.

    ``apply`` takes new settings at any time. A model without a regional transformer computes everything.
    """

    def __init__(self, model: Model, width: int, height: int) -> None:
        super().__init__()
        self._model, architecture = model, model.architecture
        self.is_supported = architecture.regional_transformer is not None
        self._patch = architecture.patch
        _, self._height, self._width = model.latent_shape(width, height)
        self._grid = (self._height // self._patch, self._width // self._patch)
        self.tokens = self._grid[0] * self._grid[1]
        self._cache = RegionCache()
        self._conditions: Memo[Condition] = Memo()
        self._timesteps: Memo[Tensor] = Memo()
        self._indices: Memo[Tensor] = Memo()
        self._map: Tensor | None = None
        self._phases: Memo[Tensor] = Memo(2)
        self.reset()

    def apply(self, settings: RegionSettings) -> None:
        """Follow ``settings`` from the next call on."""
        previous, self._settings = self._settings, settings
        if not self.is_supported and settings.mode != "off" and (previous is None or previous.mode == "off"):
            self.notes.append(
                f"/regions has no effect on {self._model.architecture.title}: it computes all of its tokens"
            )
        if previous is None or (previous.mode == "focus") != (settings.mode == "focus") or not self.is_active:
            self.reset()

    @property
    def is_active(self) -> bool:
        """Whether some tokens may be skipped."""
        return self.is_supported and self.settings.mode != "off" and self._budget < 1.0

    @property
    def follows_frames(self) -> bool:
        """Whether tokens are skipped along the frames."""
        return self.is_active and self.settings.mode != "focus"

    @property
    def _budget(self) -> float:
        return regions.nearest_share(self.settings.share)

    def reset(self) -> None:
        """Forget all earlier frames."""
        self._cache.reset()
        self._epoch: tuple[object, ...] = ()
        self._rows: list[int] = []
        self._generator: torch.Generator | None = None
        self._frame = self._text_until = self._quiet = 0
        self._map = None

    def begin_map(self) -> PendingMap:
        """Begin to read the grid of tokens of the oldest frame, without waiting for a GPU."""
        return PendingMap(self._grid, self._map)

    def denoise(self, call: DenoiserCall, conditioner: Conditioner) -> Tensor:
        """Return the raw output of every row, (rows, C, h, w) float32, under the prompts of ``conditioner``."""
        return self._follow_frames(call, conditioner) if self.follows_frames else self._follow_focus(call)

    def observe(self, x: Tensor, D: Tensor) -> None:
        """Measure the focus for the next step, from x and the guided D of the frames in flight, (frames, C, h, w)."""
        if not self.is_active or self.settings.mode == "change" or not self._rows:
            return
        if self._generator is None and self.settings.metric == "random":
            self._generator = torch.Generator(x.device).manual_seed(0)
        m = regions.metric(x - D, self.settings.metric, self._patch, self._generator)
        for i, row in enumerate(self._rows[: len(x)]):
            self._cache.metric[row] = m[i]

    def is_still(self, slot: Slot, conditioner: Conditioner, guidance: GuidanceSettings) -> bool:
        """Return whether a frame that enters needs no call at all, so that the last output stays.

        So it is where nothing has changed for as long as everything takes to be computed anew, twice. On a GPU this
        would wait for the device, and is not asked.
        """
        limit = 2 * self.settings.refresh + slot.steps
        if not self.follows_frames or self._quiet <= limit or slot.x.device.type != "cpu":
            return False
        if epoch_of(self._model, conditioner, guidance, slot) != self._epoch:
            return False
        rows = self._cache.rows(
            [(0, i, False) for i in range(len(slot.frames))], regions.to_tokens(slot.x, self._patch)
        )
        if not all(map(self._cache.is_filled, rows)):
            return False
        changes = self._changes(slot.x, rows, slot.x.new_full((len(slot.x), 1), slot.step.a))
        if bool((changes > self.settings.threshold).any()):
            return False
        self.counts.add_still(len(slot.frames), self.tokens)
        return True

    def _follow_focus(self, call: DenoiserCall) -> Tensor:
        """Compute each row as its step asks: whole, whole with its keys and values stored, or its focus alone."""
        settings, keys = self.settings, call.keys(along_frames=False)
        self._cache.retain(keys)
        self._rows = self._cache.rows(keys, regions.to_tokens(call.x, self._patch))
        groups: dict[tuple[str, float], list[int]] = {}
        for i, position in enumerate(call.positions):
            start, resets = settings.start, settings.resets
            steps = call.steps[call.positive(i)]
            share = regions.ramped_share(self._budget, settings.ramp, position, start, steps)
            if regions.is_dense_step(position, start, resets) and not regions.fills_cache(position, start, resets):
                group = ("plain", 1.0)
            elif share == 1.0 or regions.is_dense_step(position, start, resets):
                group = ("fill", 1.0)
            else:
                group = ("part", share) if self._cache.is_filled(self._rows[i]) else ("fill", 1.0)
            groups.setdefault(group, []).append(i)
        outputs: list[tuple[list[int], Tensor]] = []
        for (kind, share), members in groups.items():
            if kind == "plain":
                outputs.append((members, self._compute_plain(call, members)))
            elif kind == "fill":
                outputs.append((members, self._compute_all(call, members)))
            else:
                active = self._select_focus(call, members, share)
                outputs.append((members, self._compute_part(call, members, active, settings.text)))
        return self._join(outputs)

    def _select_focus(self, call: DenoiserCall, members: list[int], share: float) -> Tensor:
        """Return the active tokens of the rows, (rows, A): those of a negative row are its positive one's."""
        of_frames = sorted({call.positive(i) for i in members})
        rows = [self._rows[i] for i in of_frames]
        m, d = (self._cache.select(tensor, rows) for tensor in (self._cache.metric, self._cache.skips))
        active = regions.select_focus(m, d, share, self.settings.high, self.settings.starvation)
        return self._take(active, [of_frames.index(call.positive(i)) for i in members])

    def _follow_frames(self, call: DenoiserCall, conditioner: Conditioner) -> Tensor:
        """Compute the tokens of each step that are new in this frame, and those whose turn it is."""
        keys, settings = call.keys(along_frames=True), self.settings
        steps = max(slot.steps for slot in call.slots)
        self._cache.retain([key for key in self._cache.keys if isinstance(key[0], int) and key[0] < steps])
        tokens = regions.to_tokens(call.x, self._patch)
        self._rows = self._cache.rows(keys, tokens)
        epoch = epoch_of(self._model, conditioner, call.guidance, call.slots[-1])
        if epoch != self._epoch:
            if self._epoch:
                self._cache.stale.fill_(regions.REFRESH_ROUNDS)
                rounds = math.ceil(regions.REFRESH_ROUNDS / self._budget)
                self._text_until, self._quiet = self._frame + rounds + steps, 0
            self._epoch = epoch
        self._frame += 1
        unfilled = [i for i, row in enumerate(self._rows) if not self._cache.is_filled(row)]
        filled = [i for i in range(len(self._rows)) if i not in unfilled]
        outputs = [(unfilled, self._compute_all(call, unfilled))] if unfilled else []
        if filled:
            with_text = self._frame <= self._text_until or (
                settings.refresh > 0 and self._frame % settings.refresh == 0
            )
            active = self._select_changes(call, filled)
            if active is None:
                self._count(len(filled), 0)
                self._map = torch.empty(0, dtype=torch.int64)
                outputs.append((filled, self._read_outputs(filled)))
            else:
                outputs.append((filled, self._compute_part(call, filled, active, with_text)))
        return self._join(outputs)

    def _select_changes(self, call: DenoiserCall, members: list[int]) -> Tensor | None:
        """Return the active tokens of the rows, (rows, A), None where nothing has to be computed."""
        settings, cache = self.settings, self._cache
        of_frames = sorted({call.positive(i) for i in members})
        rows = [self._rows[i] for i in of_frames]
        x, a = self._take(call.x[: call.frames], of_frames), self._take(call.a, of_frames)
        changes = self._changes(x, rows, a.flatten(1))
        d, stale = cache.select(cache.skips, rows), cache.select(cache.stale, rows)
        refresh = max(1, settings.refresh)
        phases = self._phases.get(lambda: regions.refresh_phases(self.tokens, refresh).to(x.device), refresh)
        is_due = phases == self._frame % refresh
        if not settings.refresh or self._quiet > 2 * settings.refresh:
            is_due = torch.zeros_like(is_due)
        score = regions.score_changes(changes, settings.threshold, d, settings.starvation, stale, is_due)
        share = self._budget
        if score.device.type == "cpu":
            needed = score > 0.0
            self._quiet = 0 if bool((needed & ~is_due).any()) else self._quiet + 1
            if settings.mode == "change" or self._quiet > 2 * settings.refresh:
                share = regions.smallest_share(self.tokens, int(needed.sum(1).max()), self._budget)
        if not share:
            return None
        if settings.mode == "both":
            score = regions.add_focus(score, cache.select(cache.metric, rows), d, settings.starvation)
        active = regions.select_highest(score, d, regions.count_active(self.tokens, share))
        return self._take(active, [of_frames.index(call.positive(i)) for i in members])

    def _changes(self, x: Tensor, rows: Sequence[int], a: Tensor) -> Tensor:
        reference = self._cache.select(self._cache.reference, rows)
        return regions.change(regions.to_tokens(x, self._patch), reference, a.clamp(min=regions.MIN_SIGNAL))

    def _compute_plain(self, call: DenoiserCall, members: list[int]) -> Tensor:
        x, t, condition = self._select(call, members)
        self._count(len(members), self.tokens)
        return self._model.denoise(x, t, condition, call.guidance.embedded)

    def _compute_all(self, call: DenoiserCall, members: list[int]) -> Tensor:
        x, t, condition = self._select(call, members)
        tokens, keys_values = self._model.denoise_tokens(x, t, condition, call.guidance.embedded, TokenChoice())
        self._cache.fill([self._rows[i] for i in members], tokens, regions.to_tokens(x, self._patch), keys_values)
        self._count(len(members), self.tokens)
        if 0 in members:
            self._map = None
        return regions.to_latents(tokens, self._patch, self._height, self._width)

    def _compute_part(self, call: DenoiserCall, members: list[int], active: Tensor, with_text: bool) -> Tensor:
        cache, rows = self._cache, [self._rows[i] for i in members]
        assert cache.keys_values is not None
        x, t, condition = self._select(call, members)
        choice = TokenChoice(active[:, None, None], cache.select(cache.keys_values, rows), with_text)
        tokens, keys_values = self._model.denoise_tokens(x, t, condition, call.guidance.embedded, choice)
        cache.update(rows, active, tokens, regions.to_tokens(x, self._patch), keys_values)
        self._count(len(members), active.shape[1])
        if 0 in members:
            self._map = active[members.index(0)]
        return self._read_outputs(members)

    def _read_outputs(self, members: list[int]) -> Tensor:
        outputs = self._cache.select(self._cache.outputs, [self._rows[i] for i in members])
        return regions.to_latents(outputs, self._patch, self._height, self._width)

    def _select(self, call: DenoiserCall, members: list[int]) -> tuple[Tensor, Tensor, Condition]:
        """Return latents, timesteps and condition of some rows; the same tensors at each tick where they can be."""
        if len(members) == len(call.x):
            return call.x, call.t, call.condition
        key = tuple(members)
        t = self._timesteps.get(lambda: self._take(call.t, members), call.t, key)
        condition = self._conditions.get(lambda: call.condition.select(members), call.condition.tokens, key)
        return self._take(call.x, members), t, condition

    def _take(self, tensor: Tensor, rows: Sequence[int]) -> Tensor:
        """Return some rows of a tensor, itself where they are all in their order; a GPU's index is uploaded once."""
        if list(rows) == list(range(len(tensor))):
            return tensor
        key = tuple(rows)
        return tensor.index_select(0, self._indices.get(lambda: torch.tensor(key, device=tensor.device), key))

    def _count(self, rows: int, tokens: int) -> None:
        self.counts.add(rows * tokens, rows * (self.tokens - tokens))

    def _join(self, outputs: Sequence[tuple[list[int], Tensor]]) -> Tensor:
        """Return the rows of all groups in their order."""
        order = [row for members, _ in outputs for row in members]
        rows = torch.cat([output for _, output in outputs]) if len(outputs) > 1 else outputs[0][1]
        return self._take(rows, [order.index(row) for row in range(len(order))])
