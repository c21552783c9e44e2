"""The console: spellings for encodings without a glyph, and lines that are dropped where nobody reads."""

from __future__ import annotations

import io
import logging
import os
import sys

import pytest

from bridge import console
from bridge.logs import ConsoleHandler


@pytest.mark.parametrize(
    ("encoding", "expected"),
    [
        ("ascii", r"1-2 -> ... x \u0416 \ud83d"),
        ("cp437", r"1-2 -> ... x \u0416 \ud83d"),
        ("utf-8", r"1–2 → … × Ж \ud83d"),
    ],
)
def test_what_an_encoding_lacks_is_spelled(encoding: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict"))
    console.configure()
    for stream in (sys.stdout, sys.stderr):
        print("1–2 → … × Ж \ud83d", end="", file=stream, flush=True)
        assert isinstance(stream, io.TextIOWrapper)
        assert stream.buffer.getvalue().decode(encoding) == expected  # type: ignore[attr-defined]


def test_closed_streams_are_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    console.configure()
    assert print("nothing") is None
    assert not sys.stdout.isatty()


@pytest.mark.skipif(os.name == "nt", reason="pipes of POSIX")
def test_a_line_that_nobody_reads_is_dropped_and_the_next_one_that_is_read_is_written() -> None:
    reader, writer = os.pipe()
    with open(writer, "w", encoding="utf-8") as stream:
        handler = ConsoleHandler(stream)
        for _ in range(500):
            console.write(stream, "x" * 999 + "\n")
            handler.emit(logging.LogRecord("a", logging.INFO, "", 0, "y" * 9999, None, None))
        unread = os.read(reader, 1 << 20)
        assert 4096 < len(unread) < 500_000
        console.write(stream, "…\n")
        assert os.read(reader, 100) == "…\n".encode()
        os.close(reader)
        handler.emit(logging.LogRecord("a", logging.INFO, "", 0, "nobody is there", None, None))
        with pytest.raises(BrokenPipeError):
            console.write(stream, "nobody is there\n")
