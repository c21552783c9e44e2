"""Prompts to conditions: encoded once on a thread of their own, cached, and blended off the cache."""

from __future__ import annotations

import logging
import queue
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from engine.diffusion.schedule import slerp
from engine.models import Condition
from engine.runtime.memo import Memo
from engine.runtime.threads import limit_to_one_thread
from engine.shared.parameter import Value
from engine.shared.snapshot import Snapshot

log = logging.getLogger(__name__)
CACHE = 256
#: What beside the text changes how it is read, such as a LoRA on the text encoder; () for nothing.
Style = tuple[Hashable, ...]
#: A text, whether it is to be read as a negative prompt, and the style.
Wanted = tuple[str, bool, Style]


def blend(conditions: Sequence[Condition], weights: Sequence[float], mode: str) -> Condition:
    """The weighted mean of conditions, linear, or spherical token by token in their order.

    Weights are relative: only their ratios count. All of them must not be 0.
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
    return Condition(mix(one.tokens, two.tokens), pooled, mask)


class Conditioner:
    """Turns a snapshot's prompts into one condition and its negative.

    ``update`` never encodes on the caller's thread: until a new text is ready the last conditions
    go on. With ``wait`` it blocks instead, for rendering and for the first frame. ``encode_negative`` is for models that
    read a negative prompt otherwise than a prompt, ``dressed`` gives the encoders a style for as long as a text is encoded.
    """

    def __init__(
        self,
        encode: Callable[[str], Condition],
        encode_negative: Callable[[str], Condition] | None = None,
        dressed: Callable[[Style], AbstractContextManager[None]] = lambda _style: nullcontext(),
    ) -> None:
        self._encode, self._encode_negative, self._dressed = encode, encode_negative, dressed
        self._cache: OrderedDict[Wanted, Condition] = OrderedDict()
        self._lock = threading.Lock()
        self._wanted: queue.SimpleQueue[tuple[Wanted, ...] | None] = queue.SimpleQueue()
        self._asked: tuple[Wanted, ...] = ()
        self._given_up: tuple[Wanted, ...] = ()
        self._key: tuple[object, ...] = ()
        self.condition: Condition | None = None
        self.negative: Condition | None = None
        self.failed = 0
        self._rows: Memo[Condition] = Memo()
        self._thread: threading.Thread | None = None

    def update(self, snapshot: Snapshot, wait: bool = False, style: Style = ()) -> None:
        """Takes ``snapshot``'s prompts; ``condition`` and ``negative`` follow as soon as they are encoded."""
        looks = tuple(
            (*weighted_prompts(look), str(look["/negative"]), str(look["/prompt/blend"]), share)
            for look, share in snapshot.looks
        )
        key = (looks, style)
        if key == self._key:
            return
        differs = self._encode_negative is not None
        needed = tuple(dict.fromkeys(
            wanted for texts, _, negative, *_ in looks
            for wanted in (*((text, False, style) for text in texts), (negative, differs, style))
        ))  # fmt: skip
        if wait or self.condition is None:
            for text in needed:
                self._remember(text)
        found = self._found(needed)
        if found is None:
            if needed != self._asked:
                self._asked = needed
                self._start()
                self._wanted.put(needed)
            return
        shares = [share for *_, share in looks]
        positives = [
            blend([found[text, False, style] for text in texts], weights, mode) for texts, weights, _, mode, _ in looks
        ]
        self.condition = blend(positives, shares, "spherical")
        self.negative = blend([found[negative, differs, style] for _, _, negative, *_ in looks], shares, "spherical")
        self._key, self._asked = key, ()

    @property
    def settled(self) -> bool:
        """Whether the prompts last asked for are in effect, or have failed for good."""
        return not self._asked or self._asked == self._given_up

    def rows(self, count: int, negatives: int) -> Condition:
        """The condition for ``count`` rows, then the negative one for ``negatives`` rows: the same tensors until the prompts change."""
        assert self.condition is not None
        assert self.negative is not None
        parts = [self.condition.rows(count), *([self.negative.rows(negatives)] if negatives else [])]
        return self._rows.get(
            lambda: Condition.concatenate(parts), self.condition.tokens, self.negative.tokens, count, negatives
        )

    def close(self) -> None:
        """Ends the thread."""
        self._wanted.put(None)

    def _found(self, texts: tuple[Wanted, ...]) -> dict[Wanted, Condition] | None:
        with self._lock:
            if any(text not in self._cache for text in texts):
                return None
            for text in texts:
                self._cache.move_to_end(text)
            return {text: self._cache[text] for text in texts}

    def _remember(self, wanted: Wanted) -> None:
        with self._lock:
            if wanted in self._cache:
                return
        text, negative, style = wanted
        with self._dressed(style):
            condition = self._encode_negative(text) if negative and self._encode_negative else self._encode(text)
        with self._lock:
            self._cache[wanted] = condition
            while len(self._cache) > CACHE:
                self._cache.popitem(last=False)

    def _start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="prompts", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        limit_to_one_thread()
        while (texts := self._wanted.get()) is not None:
            while not self._wanted.empty():  # only the newest prompts are worth the time
                newer = self._wanted.get()
                if newer is None:
                    return
                texts = newer
            for text in texts:
                try:
                    self._remember(text)
                except RuntimeError as error:
                    self.failed += 1
                    self._given_up = texts
                    log.error("prompt %.60r could not be encoded: %s", text[0], error)


def weighted_prompts(look: Mapping[str, Value]) -> tuple[tuple[str, ...], tuple[float, ...]]:
    """The prompts of a look that count and their weights. Without any weight the first prompt stands alone."""
    pairs = [(str(look["/prompt"]), float(look["/prompt/1/weight"]))]
    pairs += [
        (str(look[f"/prompt/{i}"]), float(look[f"/prompt/{i}/weight"])) for i in (2, 3, 4) if look[f"/prompt/{i}"]
    ]
    pairs = [(text, weight) for text, weight in pairs if weight > 0.0] or [(pairs[0][0], 1.0)]
    return tuple(text for text, _ in pairs), tuple(weight for _, weight in pairs)
