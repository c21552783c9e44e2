"""Loading beside the frame loop: requested at one frame, read on a thread, fetched at a later frame."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Generic, TypeVar

from engine.models.loading import BUILD_LOCK
from engine.runtime.device import inherit_device
from engine.shared.errors import first_line
from engine.shared.parameter import InvalidValue

log = logging.getLogger(__name__)
Request = TypeVar("Request", bound=Hashable)
Result = TypeVar("Result")


class AsyncLoader(Generic[Request, Result]):
    """Loads what is requested, one thing at a time; only the newest request counts.

    ``load`` runs on the loader's thread; the lines that it passes to its second argument are reported to the user.
    ``blocking`` makes ``poll`` wait for the result, for offline rendering.
    """

    def __init__(
        self, load: Callable[[Request, Callable[[str], None]], Result], initial: Request, blocking: bool = False
    ) -> None:
        self._load, self._requested, self._blocking = load, initial, blocking
        self._executor = ThreadPoolExecutor(1, "adapters", inherit_device())
        self._running: tuple[Request, Future[Result]] | None = None
        self._errors: list[str] = []

    @property
    def busy(self) -> bool:
        """Whether something is being loaded."""
        return self._running is not None

    def poll(self, request: Request) -> Result | None:
        """Return the result for ``request`` once, when it is ready; None otherwise, also where loading failed."""
        result: Result | None = None
        while True:
            if self._running is None:
                if request == self._requested:
                    return result
                self._requested = request
                self._running = (request, self._executor.submit(self._locked_load, request))
            running, future = self._running
            if not self._blocking and not future.done():
                return None
            self._running = None
            try:
                loaded = future.result()
                result = loaded if running == request else None
            except InvalidValue as error:
                self._errors.append(str(error))
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # of any library, also a panic in Rust: the frames go on without it
                self._errors.append(f"an adapter could not be loaded: {first_line(error)}")

    def settle(self) -> None:
        """Wait until nothing is being loaded; the result is fetched by the next ``poll``."""
        if self._running is not None:
            wait([self._running[1]])

    def take_errors(self) -> list[str]:
        """Return the errors since the last call, one line each."""
        errors, self._errors = self._errors, []
        return errors

    def close(self) -> None:
        """End the thread; what is being loaded is discarded."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _locked_load(self, request: Request) -> Result:
        with BUILD_LOCK:
            return self._load(request, self._errors.append)
