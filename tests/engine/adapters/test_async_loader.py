"""The asynchronous loader: results once, the newest request wins, errors are reported once, a blocking one waits."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest

from engine.adapters.async_loader import AsyncLoader
from engine.shared.parameter import InvalidValue
from tests.waiting import until


class Panic(BaseException):
    """What a library written in Rust raises where its code gives up: no Exception."""


ERRORS: dict[str, tuple[BaseException, str]] = {
    "invalid": (InvalidValue("adapter 'invalid' is for another model"), "adapter 'invalid' is for another model"),
    "memory": (RuntimeError("out of memory\nfurther lines"), "an adapter could not be loaded: out of memory"),
    "key": (KeyError("weight"), "an adapter could not be loaded: 'weight'"),
    "panic": (Panic("index out of bounds"), "an adapter could not be loaded: index out of bounds"),
    "exit": (SystemExit("bye"), "an adapter could not be loaded: bye"),
    "nested": (RecursionError("too deep"), "an adapter could not be loaded: too deep"),
    "disk": (OSError("disk is gone"), "an adapter could not be loaded: disk is gone"),
}


class Files:
    """Reads a name as its upper-case letters, while ``gate`` is open. ``read`` are the names in their order."""

    def __init__(self) -> None:
        self.read: list[str] = []
        self.threads: set[str] = set()
        self.gate = threading.Event()
        self.gate.set()

    def load(self, name: str, report: Callable[[str], None]) -> str:
        self.read.append(name)
        self.threads.add(threading.current_thread().name)
        assert self.gate.wait(20)
        if name == "partial":
            report("slot 2 of partial is damaged")
        if name in ERRORS:
            raise ERRORS[name][0]
        return name.upper()


@pytest.fixture
def files() -> Files:
    return Files()


@pytest.fixture
def live(files: Files) -> Iterator[AsyncLoader[str, str]]:
    loader = AsyncLoader(files.load, "")
    yield loader
    files.gate.set()
    loader.close()


@pytest.fixture
def blocking(files: Files) -> Iterator[AsyncLoader[str, str]]:
    loader = AsyncLoader(files.load, "", blocking=True)
    yield loader
    loader.close()


def poll_until_loaded(loader: AsyncLoader[str, str], request: str) -> list[str]:
    """Poll for ``request`` until nothing is being loaded; return the results."""
    results: list[str] = []

    def poll() -> bool:
        result = loader.poll(request)
        if result is not None:
            results.append(result)
        return not loader.busy

    until(poll, 20, f"the end of loading {request}")
    return results


def test_a_live_loader_returns_at_once_and_the_result_once(files: Files, live: AsyncLoader[str, str]) -> None:
    assert live.poll("") is None, "the initial request needs no loading"
    assert not live.busy
    files.gate.clear()
    assert [live.poll("a") for _ in range(3)] == [None] * 3
    assert live.busy
    files.gate.set()
    assert poll_until_loaded(live, "a") == ["A"]
    assert [live.poll("a") for _ in range(3)] == [None] * 3, "the result is returned once"
    assert files.read == ["a"]
    assert all(name.startswith("adapters") for name in files.threads), "never on the caller's thread"


def test_only_the_newest_request_counts(files: Files, live: AsyncLoader[str, str]) -> None:
    files.gate.clear()
    for request in ("a", "b", "c", "d"):
        assert live.poll(request) is None
    files.gate.set()
    assert poll_until_loaded(live, "d") == ["D"]
    assert files.read == ["a", "d"], "what was superseded while a file was read is never read"


def test_a_result_that_is_requested_again_is_used(files: Files, live: AsyncLoader[str, str]) -> None:
    files.gate.clear()
    for request in ("a", "b", "a"):
        assert live.poll(request) is None
    files.gate.set()
    assert poll_until_loaded(live, "a") == ["A"]
    assert files.read == ["a"]


def test_settle_waits_and_the_next_poll_returns_the_result(files: Files, live: AsyncLoader[str, str]) -> None:
    live.settle()
    assert not live.busy
    files.gate.clear()
    assert live.poll("a") is None
    files.gate.set()
    live.settle()
    assert live.poll("a") == "A"
    assert not live.busy


@pytest.mark.parametrize("name", ERRORS)
@pytest.mark.parametrize("mode", ["live", "blocking"])
def test_an_error_is_reported_once_and_not_retried(
    name: str, mode: str, files: Files, request: pytest.FixtureRequest
) -> None:
    loader: AsyncLoader[str, str] = request.getfixturevalue(mode)
    assert poll_until_loaded(loader, name) == []
    assert loader.take_errors() == [ERRORS[name][1]]
    assert loader.take_errors() == []
    assert poll_until_loaded(loader, name) == []
    assert files.read == [name]
    assert poll_until_loaded(loader, "a") == ["A"], "another request is loaded"
    assert loader.take_errors() == []


def test_an_error_of_a_superseded_request_is_reported(files: Files, live: AsyncLoader[str, str]) -> None:
    files.gate.clear()
    live.poll("invalid")
    live.poll("a")
    files.gate.set()
    assert poll_until_loaded(live, "a") == ["A"]
    assert live.take_errors() == [ERRORS["invalid"][1]]


def test_lines_that_loading_reports_come_with_the_result(files: Files, blocking: AsyncLoader[str, str]) -> None:
    assert blocking.poll("partial") == "PARTIAL"
    assert blocking.take_errors() == ["slot 2 of partial is damaged"]


def test_a_blocking_loader_returns_the_result_of_every_request(files: Files, blocking: AsyncLoader[str, str]) -> None:
    assert [blocking.poll(name) for name in ("a", "a", "b", "")] == ["A", None, "B", ""]
    assert files.read == ["a", "b", ""]
    assert not blocking.busy
