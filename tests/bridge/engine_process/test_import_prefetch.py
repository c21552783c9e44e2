"""Import prefetch: the files of the engine's imports are recorded, and read ahead at the next start."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bridge.engine_process import import_prefetch

pytestmark = pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="needs posix_fadvise")


@pytest.fixture(autouse=True)
def imports_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "cache" / "imported.txt"
    monkeypatch.setattr(import_prefetch, "list_path", lambda: path)
    return path


def requested_files(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the list to which each file is added that the system is asked to read ahead."""
    paths: list[str] = []
    monkeypatch.setattr(os, "posix_fadvise", lambda file, *_: paths.append(os.readlink(f"/proc/self/fd/{file}")))
    return paths


def test_recorded_files_are_read_ahead(imports_list: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert import_prefetch.start() is None, "nothing is recorded yet"
    files = [Path(__file__), Path(import_prefetch.__file__)]
    import_prefetch.record(files)
    paths = requested_files(monkeypatch)
    thread = import_prefetch.start()
    assert thread is not None
    thread.join(30)
    assert paths == [str(file) for file in files]
    assert list(imports_list.parent.iterdir()) == [imports_list]


def test_large_and_missing_files_are_left_out(
    imports_list: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small, large = tmp_path / "small", tmp_path / "large"
    small.write_bytes(b"1")
    with large.open("wb") as file:
        file.truncate(import_prefetch.MAX_FILE_BYTES + 1)
    imports_list.parent.mkdir()
    imports_list.write_text(f"{large}\n{tmp_path / 'missing'}\n{small}")
    paths = requested_files(monkeypatch)
    thread = import_prefetch.start()
    assert thread is not None
    thread.join(30)
    assert paths == [str(small)]


def test_a_folder_that_cannot_be_written_is_no_error(imports_list: Path) -> None:
    imports_list.parent.write_text("no folder")
    import_prefetch.record([Path(__file__)])
    assert import_prefetch.start() is None
