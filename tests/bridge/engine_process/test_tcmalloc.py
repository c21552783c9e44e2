"""tcmalloc: preloaded into the engine process where it is installed, and nowhere else."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import subprocess
import sys
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from bridge.engine_process import tcmalloc
from bridge.engine_process.process import EngineProcess
from engine.shared.mailbox import Mailbox, Mailboxes
from engine.shared.messages import Waiting
from engine.shared.options import EngineOptions
from tests.waiting import until

ROOT = Path(__file__).parents[3]
LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="for Linux")
VARIABLES = ("LD_PRELOAD", "TCMALLOC_LARGE_ALLOC_REPORT_THRESHOLD")


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """Copy a library that every process loads to the name of tcmalloc's, and return its path."""
    maps = Path("/proc/self/maps").read_text(encoding="utf-8")
    libm = next(line.split()[-1] for line in maps.splitlines() if Path(line.split()[-1]).name.startswith("libm.so"))
    return Path(shutil.copy(libm, tmp_path / tcmalloc.LIBRARY))


@LINUX
def test_the_library_is_found_unless_another_allocator_is_preloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LD_PRELOAD", raising=False)
    folders = (str(tmp_path / "nowhere"), str(tmp_path))
    assert tcmalloc.find_library(folders) is None
    (tmp_path / tcmalloc.LIBRARY).touch()
    assert tcmalloc.find_library(folders) == tmp_path / tcmalloc.LIBRARY
    monkeypatch.setenv("LD_PRELOAD", "/usr/lib/libjemalloc.so.2")
    assert tcmalloc.find_library(folders) is None
    monkeypatch.delenv("LD_PRELOAD")
    monkeypatch.setattr(sys, "platform", "darwin")
    assert tcmalloc.find_library(folders) is None


def _report(pipe: Connection) -> None:
    loaded = tcmalloc.LIBRARY in Path("/proc/self/maps").read_text(encoding="utf-8")
    before = os.environ.get("LD_PRELOAD")
    tcmalloc.forget_preload()
    pipe.send((loaded, before, os.environ.get("LD_PRELOAD")))


@LINUX
def test_a_process_loads_it_and_its_children_do_not(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_PRELOAD", "libdl.so.2")
    context = multiprocessing.get_context("spawn")
    for preloaded in (library, None):
        parent, child = context.Pipe()
        process = context.Process(target=_report, args=(child,))
        with tcmalloc.preload(preloaded):
            process.start()
        assert parent.poll(30)
        assert parent.recv() == (
            preloaded is not None,
            f"{library} libdl.so.2" if preloaded else "libdl.so.2",
            "libdl.so.2",
        )
        process.join(10)
        assert os.environ["LD_PRELOAD"] == "libdl.so.2"
        assert VARIABLES[1] not in os.environ


@LINUX
def test_the_engine_loads_it_and_this_process_does_not(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tcmalloc, "find_library", lambda: library)
    before = {name: os.environ.get(name) for name in VARIABLES}
    context = multiprocessing.get_context("spawn")
    boxes = Mailboxes(Mailbox(context), Mailbox(context), Mailbox(context))
    engine = EngineProcess(context, boxes, EngineOptions("cpu"), lambda: None)
    try:
        until(lambda: engine.is_waiting, 60, "the engine")
        assert engine.messages() == ([Waiting()], True)
        assert str(library) in Path(f"/proc/{engine.process.pid}/maps").read_text(encoding="utf-8")
        assert str(library) not in Path("/proc/self/maps").read_text(encoding="utf-8")
        assert {name: os.environ.get(name) for name in VARIABLES} == before
    finally:
        engine.end(0.5)
        for box in boxes:
            box.close()


@LINUX
def test_a_command_restarts_with_it_once(library: Path) -> None:
    program = f"""
import sys
from pathlib import Path
from bridge.engine_process import tcmalloc
tcmalloc.restart_with(tcmalloc.find_library(({str(library.parent)!r},)))
print(sys.argv[1:], tcmalloc.LIBRARY in Path("/proc/self/maps").read_text())
"""
    command = [sys.executable, "-c", program, "one", "two words"]
    environment = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    output = subprocess.run(
        command, capture_output=True, text=True, check=True, timeout=60, cwd=ROOT, env=environment
    ).stdout
    assert output.splitlines() == ["['one', 'two words'] True"]
