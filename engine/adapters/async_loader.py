"""Work that must not hold a frame up: asked for on the frame loop, done on a thread, fetched at a later frame."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

from engine.models.loading import BUILD_LOCK
from engine.runtime.threads import limit_to_one_thread
from engine.shared.parameter import InvalidValue

log = logging.getLogger(__name__)
Wish = TypeVar("Wish", bound=Hashable)
Made = TypeVar("Made")


class AsyncLoader(Generic[Wish, Made]):
    """Makes what is wished for, one thing at a time; only the newest wish counts. ``errors`` are told once each, by ``told``."""

    def __init__(self, make: Callable[[Wish], Made], first: Wish) -> None:
        self._make, self._asked = make, first
        self._executor = ThreadPoolExecutor(1, "adapters", limit_to_one_thread)
        self._running: tuple[Wish, Future[Made]] | None = None
        self._errors: list[str] = []

    @property
    def busy(self) -> bool:
        """Whether something is being made."""
        return self._running is not None

    def poll(self, wish: Wish, wait: bool = False) -> Made | None:
        """What ``wish`` gave, once, when it is ready; ``wait`` waits for it. None otherwise, also where it failed."""
        made: Made | None = None
        while True:
            if self._running is None:
                if wish == self._asked:
                    return made
                self._asked = wish
                self._running = (wish, self._executor.submit(self._made, wish))
            asked, future = self._running
            if not wait and not future.done():
                return None
            self._running = None
            try:
                result = future.result()
                made = result if asked == wish else None
            except InvalidValue as error:
                self._errors.append(str(error))
            except (RuntimeError, MemoryError, OSError) as error:
                self._errors.append(f"an adapter could not be loaded: {str(error).splitlines()[0]}")

    def _made(self, wish: Wish) -> Made:
        with BUILD_LOCK:
            return self._make(wish)

    def told(self) -> list[str]:
        """The errors since the last call, one line each."""
        errors, self._errors = self._errors, []
        return errors

    def close(self) -> None:
        """Ends the thread."""
        self._executor.shutdown(wait=False, cancel_futures=True)
