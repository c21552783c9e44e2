"""The reader of users' files: jobs on files and folders, in order, on threads that nobody waits for.

A network folder may answer after minutes or never, and no program can end a read that hangs. So each job runs on a
daemon thread of its own under a time limit. A job that does not come back is abandoned, and its result is dropped.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from bridge.rate_limit import RateLimit
from engine.shared.errors import first_line
from engine.shared.parameter import InvalidValue

log = logging.getLogger(__name__)
T = TypeVar("T")
#: Time limit of a job.
JOB_SECONDS = 5.0
#: Time after which a job that reads many files leaves the rest to the next one.
SCAN_SECONDS = 2.0
#: Abandoned jobs of one place that may hang at the same time; further jobs there are refused.
MAX_ABANDONED_JOBS = 2
#: Jobs that may wait in the queue.
MAX_QUEUED_JOBS = 256
#: Longest wait for writes at the end.
CLOSE_SECONDS = 2.0


def raise_invalid(reason: str) -> None:
    """Raise InvalidValue."""
    raise InvalidValue(reason)


def expand_user(name: str) -> Path:
    """Return ``name`` as a path, ``~`` as the home folder. Raises InvalidValue."""
    try:
        return Path(name).expanduser()
    except RuntimeError:  # ~NAME of no user
        raise InvalidValue(f"{name[:80]!r}: no such home folder") from None


@dataclass(eq=False)
class _Job:
    """One job, and what came of it."""

    place: str
    work: Callable[[], Any]
    apply: Callable[[Any], object]
    fail: Callable[[str], object] | None
    is_write: bool = False
    result: Any = None
    problem: str = ""
    finished: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        """Do the work, on a thread that may hang."""
        try:
            self.result = self.work()
        except OSError as error:
            self.problem = error.strerror or first_line(error)
        except (InvalidValue, ValueError, RuntimeError, MemoryError) as error:
            self.problem = first_line(error)
        except BaseException as error:
            log.exception("a job on files failed")
            self.problem = first_line(error) if isinstance(error, Exception) else type(error).__name__
        finally:
            self.finished.set()


class FileReader:
    """Runs jobs on users' files. Until ``open`` each job runs while its caller waits, from then on nobody waits.

    ``place`` names a folder or a parameter in messages: where jobs of a place hang, further ones there are refused.
    """

    def __init__(self, limit: float = JOB_SECONDS) -> None:
        self._limit = limit
        self._queue: OrderedDict[object, _Job] = OrderedDict()
        self._running: _Job | None = None
        self._changed = threading.Condition()
        self._abandoned: dict[str, list[_Job]] = {}
        self._failures = RateLimit()
        self._thread: threading.Thread | None = None
        self._closed = False

    def open(self) -> None:
        """Run jobs on a thread from now on."""
        self._thread = threading.Thread(target=self._run, name="files", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop. Writes that wait are finished if the disk answers; reads are dropped."""
        with self._changed:
            for key in [key for key, job in self._queue.items() if not job.is_write]:
                del self._queue[key]
            self._closed = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._has_writes(), CLOSE_SECONDS)

    def submit(
        self,
        place: str,
        work: Callable[[], T],
        apply: Callable[[T], object] = lambda _result: None,
        fail: Callable[[str], object] | None = None,
        key: object = None,
        is_write: bool = False,
    ) -> None:
        """Run ``work`` on a thread that may hang, then ``apply`` its result or ``fail`` with the reason in one line.

        ``work`` must not change what others see: its result is dropped if it comes late. A job replaces the one of the
        same ``key`` that still waits. Without ``fail`` only a place that does not answer is logged, once.
        """
        job = _Job(place, work, apply, fail, is_write)
        if self._thread is None:
            self._execute(job)
            return
        key = job if key is None else key
        with self._changed:
            accepted = not self._closed and (key in self._queue or len(self._queue) < MAX_QUEUED_JOBS)
            if accepted:
                self._queue.pop(key, None)
                self._queue[key] = job
                self._changed.notify_all()
        if not accepted:
            self._fail(job, "too many files wait to be read or written")

    def call(self, place: str, work: Callable[[], T]) -> T:
        """Return the result of ``work``, for the start of a command. Raises InvalidValue after the time limit.

        An OSError, InvalidValue or other error of ``work`` is raised as it is.
        """
        outcome: list[tuple[T | None, BaseException | None]] = []

        def catch() -> None:
            try:
                outcome.append((work(), None))
            except BaseException as error:
                outcome.append((None, error))

        job = _Job(place, catch, lambda _result: None, None)
        threading.Thread(target=job.run, name="file job", daemon=True).start()
        if not job.finished.wait(self._limit):
            raise InvalidValue(self._describe(place))
        result, error = outcome[0]
        if error is not None:
            raise error
        return result  # type: ignore[return-value]

    def _run(self) -> None:
        while True:
            with self._changed:
                self._running = None
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._queue or self._closed)
                if not self._queue:
                    return
                _, self._running = self._queue.popitem(last=False)
                job = self._running
            try:
                self._execute(job)
            except Exception:  # what a result changes may fail: the reader must live as long as the show
                if self._failures.passes()[0]:
                    log.exception("what was read from %s could not be used", job.place)

    def _execute(self, job: _Job) -> None:
        """Run a job, wait for it within the limit, and pass its result on."""
        with self._changed:
            abandoned = self._abandoned.pop(job.place, [])
            hanging = [other for other in abandoned if not other.finished.is_set()]
            if hanging:
                self._abandoned[job.place] = hanging
        if abandoned and not hanging:
            log.info("%s: answers again", job.place)
        if len(hanging) >= MAX_ABANDONED_JOBS:
            self._fail(job, "does not answer")
            return
        try:
            threading.Thread(target=job.run, name="file job", daemon=True).start()
        except RuntimeError as error:  # the system gives no thread
            self._fail(job, first_line(error))
            return
        if not job.finished.wait(self._limit):
            with self._changed:
                self._abandoned.setdefault(job.place, []).append(job)
            if not hanging:
                log.error("%s", self._describe(job.place))
            self._fail(job, f"does not answer within {self._limit:g} s")
        elif job.problem:
            self._fail(job, job.problem)
        else:
            job.apply(job.result)

    def _has_writes(self) -> bool:
        running = self._running
        return (running is not None and running.is_write) or any(job.is_write for job in self._queue.values())

    def _describe(self, place: str) -> str:
        return f"{place}: the disk or network folder does not answer within {self._limit:g} s"

    @staticmethod
    def _fail(job: _Job, reason: str) -> None:
        if job.fail is not None:
            job.fail(reason)
