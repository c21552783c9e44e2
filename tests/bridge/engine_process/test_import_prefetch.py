"""What the engine imports is noted, and read ahead of it at the next start."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bridge.engine_process import import_prefetch as readahead

pytestmark = pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="needs a system that reads ahead on request")


@pytest.fixture(autouse=True)
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "cache" / "imported.txt"
    monkeypatch.setattr(readahead, "kept", lambda: path)
    return path


def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that the system is asked to read."""
    paths: list[str] = []
    monkeypatch.setattr(os, "posix_fadvise", lambda file, *_: paths.append(os.readlink(f"/proc/self/fd/{file}")))
    return paths


def test_what_was_noted_is_read_ahead(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert readahead.begin() is None, "nothing is noted yet"
    files = [Path(__file__), Path(readahead.__file__)]
    readahead.note(files)
    paths = asked(monkeypatch)
    thread = readahead.begin()
    assert thread is not None
    thread.join(30)
    assert paths == [str(file) for file in files]
    assert list(kept.parent.iterdir()) == [kept]


def test_large_and_missing_files_are_left_out(kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small, large = tmp_path / "small", tmp_path / "large"
    small.write_bytes(b"1")
    with large.open("wb") as file:
        file.truncate(readahead.LARGEST + 1)
    kept.parent.mkdir()
    kept.write_text(f"{large}\n{tmp_path / 'missing'}\n{small}")
    paths = asked(monkeypatch)
    thread = readahead.begin()
    assert thread is not None
    thread.join(30)
    assert paths == [str(small)]


def test_a_folder_that_cannot_be_written_is_no_error(kept: Path) -> None:
    kept.parent.write_text("no folder")
    readahead.note([Path(__file__)])
    assert readahead.begin() is None
