"""Prompts to conditions: blended from encoded texts, mixed during a crossfade."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from engine.diffusion.prompt_encoder import EncodingRequest, PromptEncoder, TextStyle
from engine.diffusion.schedule import slerp
from engine.models import Condition
from engine.runtime.memo import Memo
from engine.shared.settings import LookSettings


def blend(conditions: Sequence[Condition], weights: Sequence[float], mode: str) -> Condition:
    """Return the weighted mean of conditions: linear, or spherical token by token in their order.

    Weights are relative: only their ratios count. Not all of them may be 0.
    """
    if len(conditions) == 1:
        return conditions[0]
    total, mixed = weights[0], conditions[0]
    for condition, weight in zip(conditions[1:], weights[1:], strict=True):
        total += weight
        if weight == 0.0:
            continue
        mixed = _mix(mixed, condition, weight / total, mode)
    return mixed


def _mix(one: Condition, two: Condition, share: float, mode: str) -> Condition:
    def mix(a: Tensor, b: Tensor) -> Tensor:
        return slerp(a.float(), b.float(), share).to(a.dtype) if mode == "spherical" else a + (b - a) * share

    pooled = None if one.pooled is None or two.pooled is None else mix(one.pooled, two.pooled)
    mask = None if one.mask is None or two.mask is None else torch.maximum(one.mask, two.mask)
    lengths = tuple(map(max, one.lengths, two.lengths))  # every mask begins at the first token
    return Condition(mix(one.tokens, two.tokens), pooled, mask, lengths)


class Conditioner:
    """The prompts of the newest looks as one condition and its negative.

    A live conditioner never encodes on the caller's thread, but for the very first prompt: until a new text is
    encoded the last conditions stay. A ``blocking`` one encodes at once, for offline rendering. The other arguments
    are those of ``PromptEncoder``.
    """

    def __init__(
        self,
        encode: Callable[[str], Condition],
        encode_negative: Callable[[str], Condition] | None = None,
        apply_style: Callable[[TextStyle], AbstractContextManager[None]] = lambda _style: nullcontext(),
        blocking: bool = False,
        device_lock: AbstractContextManager[object] | None = None,
    ) -> None:
        self.encoder = PromptEncoder(encode, encode_negative, apply_style, device_lock)
        self._blocking = blocking
        self._pending: tuple[EncodingRequest, ...] = ()
        self._key: tuple[object, ...] = ()
        self._rows: Memo[Condition] = Memo()
        self.condition: Condition | None = None
        self.negative: Condition | None = None

    def update(
        self, looks: Sequence[tuple[LookSettings, float]], style: TextStyle = (), encode_now: bool = False
    ) -> None:
        """Follow the prompts of ``looks``: ``condition`` and ``negative`` change as soon as they are encoded.

        ``encode_now`` encodes on the calling thread this time.
        """
        key = (tuple((_prompts(look), share) for look, share in looks), style)
        if key == self._key:
            return
        negative_differs = self.encoder.reads_negatives_differently
        requests = tuple(dict.fromkeys(
            request for look, _ in looks
            for request in (*(EncodingRequest(text, False, style) for text in look.weighted_prompts[0]),
                            EncodingRequest(look.negative, negative_differs, style))
        ))  # fmt: skip
        if encode_now or self._blocking or self.condition is None:
            for request in requests:
                self.encoder.encode(request)
        encoded = self.encoder.get(requests)
        if encoded is None:
            if requests != self._pending:
                self._pending = requests
                self.encoder.encode_later(requests)
            return

        def positive(look: LookSettings) -> Condition:
            texts, weights = look.weighted_prompts
            return blend([encoded[EncodingRequest(text, False, style)] for text in texts], weights, look.blend)

        negatives = [encoded[EncodingRequest(look.negative, negative_differs, style)] for look, _ in looks]
        shares = [share for _, share in looks]
        self.condition = blend([positive(look) for look, _ in looks], shares, "spherical")
        self.negative = blend(negatives, shares, "spherical")
        self._key, self._pending = key, ()

    @property
    def settled(self) -> bool:
        """Whether the prompts requested last are in effect, or have failed for good."""
        return not self._pending or self._pending == self.encoder.failed_requests

    def rows(self, count: int, negatives: int) -> Condition:
        """Return the condition for ``count`` rows followed by the negative one for ``negatives`` rows.

        The tensors are the same ones until the prompts change.
        """
        assert self.condition is not None
        assert self.negative is not None
        parts = [self.condition.rows(count), *([self.negative.rows(negatives)] if negatives else [])]
        return self._rows.get(
            lambda: Condition.concatenate(parts), self.condition.tokens, self.negative.tokens, count, negatives
        )

    def close(self) -> None:
        """End the prompt thread."""
        self.encoder.close()


def _prompts(look: LookSettings) -> tuple[object, ...]:
    return (*look.weighted_prompts, look.negative, look.blend)
