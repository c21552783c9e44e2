"""TouchDesigner's shared memory: the byte layouts, and its protocol against a stand-in for Windows and for the TOPs."""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator

import numpy as np
import pytest

from bridge.textures import TextureError, base, open_sink, open_source, touchshm
from bridge.textures.base import Source, SourceLost
from engine.shared.frame import Frame, Pixels
from tests.bridge.textures.fake_kernel32 import Windows
from tests.bridge.textures.fake_tops import HEADER, InTop, OutTop, Top
from tests.bridge.textures.pictures import read_frame, upright
from tests.waiting import until


@pytest.fixture
def windows(monkeypatch: pytest.MonkeyPatch) -> Iterator[Windows]:
    """Yield a Windows machine, where a lost writer is noticed soon."""
    machine = Windows()
    machine.install(monkeypatch)
    monkeypatch.setattr(base, "RETRY_SECONDS", 0.02)
    monkeypatch.setattr(touchshm, "STILL_SECONDS", 0.1)
    yield machine
    assert not any(mutex.owner for mutex in machine.mutexes.values())


def shows(top: InTop, pixels: Pixels) -> bool:
    return np.array_equal(np.asarray(top.look()), pixels)


def read_size(source: Source, width: int, height: int) -> Frame:
    frame = read_frame(source)
    assert frame.size == (width, height)
    assert np.array_equal(frame.pixels, upright(width, height))
    return frame


def test_an_out_top_is_received_upright_and_followed_to_other_sizes(
    windows: Windows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(touchshm, "STILL_SECONDS", 60.0)
    top = OutTop(windows, "stage")
    top.show(upright(32, 24))
    with open_source("touchshm:stage") as source:
        read_size(source, 32, 24)
        for size in ((640, 360), (16, 16), (320, 180), (8, 8)):
            top.show(upright(*size))
            read_size(source, *size)
        assert source.losses == 0
        top.show(upright(8, 8, shift=1)[..., [2, 1, 0, 3]], pixel_format=44)
        assert np.array_equal(read_frame(source).pixels, upright(8, 8, shift=1))


def test_a_still_picture_is_one_frame_and_no_loss(windows: Windows) -> None:
    top = OutTop(windows, "stage")
    top.show(upright())
    with open_source("touchshm:stage") as source:
        read_frame(source)
        end = time.perf_counter() + 0.4
        while time.perf_counter() < end:
            assert source.read(0.02) is None
        assert source.losses == 0
        top.show(upright(shift=5))
        assert np.array_equal(read_frame(source).pixels, upright(shift=5))


@pytest.mark.parametrize("ending", ["close", "crash"])
def test_an_out_top_can_end_and_start_again(windows: Windows, ending: str) -> None:
    with open_source("touchshm:stage") as source:
        assert source.read(0.01) is None
        for visit in range(1, 4):
            top = OutTop(windows, "stage")
            top.show(upright(8 * visit, 8))
            read_size(source, 8 * visit, 8)
            getattr(top, ending)()
            until(lambda expected=visit: source.read(0.01) is None and source.losses == expected, 5)
            assert not windows.memories, "nothing is kept that TouchDesigner would find in its way"


def test_a_writer_without_an_info_segment_is_received(windows: Windows) -> None:
    top = Top(windows, "stage")
    data = touchshm.encode(upright(8, 8))
    memory = top._map("TouchSHMstage", len(data))
    assert memory is not None
    memory.content[0 : len(data)] = data
    with open_source("touchshm:stage") as source:
        read_size(source, 8, 8)
        top.crash()
        until(lambda: source.read(0.01) is None and source.losses == 1, 5)


@pytest.mark.parametrize(
    ("position", "value"), [(8, 4096), (12, 16384), (40, 5000), (40, 2**31 - 1), (40, -4), (8, 0), (24, 109), (0, 7)]
)
def test_a_header_that_points_outside_the_memory_is_no_access_violation(
    windows: Windows, position: int, value: int
) -> None:
    top = OutTop(windows, "stage")
    top.show(upright(32, 31))
    assert top.memory is not None
    top.memory.content[position : position + 4] = struct.pack("<i", value)
    with open_source("touchshm:stage") as source:
        for _ in range(20):
            assert source.read(0.01) is None
        top.show(upright(16, 16))
        read_size(source, 16, 16)


def test_memory_that_is_not_written_yet_is_no_loss(windows: Windows) -> None:
    top = OutTop(windows, "stage")
    top._resize(HEADER.size + 64)
    with open_source("touchshm:stage") as source:
        for _ in range(5):
            assert source.read(0.01) is None
        assert source.losses == 0
        top.show(upright(4, 4))
        read_size(source, 4, 4)


def test_a_program_that_keeps_the_memory_locked_delays_no_reader_for_long(windows: Windows) -> None:
    top = OutTop(windows, "stage")
    top.show(upright(4, 4))
    with open_source("touchshm:stage") as source:
        read_size(source, 4, 4)
        for name in ("TouchSHMstageMutex", "TouchSHMTouchSHMstage4jhd783hMutex"):
            windows.mutexes[name].owner = "TouchDesigner"
            assert source.read(0.05) is None
            windows.mutexes[name].owner = ""
        top.show(upright(4, 4, shift=1))
        assert np.array_equal(read_frame(source).pixels, upright(4, 4, shift=1))
        windows.mutexes["TouchSHMstageMutex"].abandoned = True
        top.show(upright(4, 4, shift=2))
        assert np.array_equal(read_frame(source).pixels, upright(4, 4, shift=2))


def test_an_in_top_shows_our_pictures_upright_in_every_size(windows: Windows) -> None:
    top = InTop(windows, "stage")
    assert top.look() is None
    with open_sink("touchshm:stage") as sink:
        for size in ((32, 24), (64, 48), (640, 360), (8, 8), (1280, 720)):
            sink.write(Frame(upright(*size)))
            assert shows(top, upright(*size))
    assert top.look() is None
    assert not windows.memories


def test_a_second_show_is_followed_after_a_crash_and_after_an_end(windows: Windows) -> None:
    top = InTop(windows, "stage")
    dead = open_sink("touchshm:stage")
    assert isinstance(dead, touchshm.TouchSink)
    dead.write(Frame(upright(32, 24)))
    assert shows(top, upright(32, 24))
    for part in (dead._info, dead._memory, dead._mutex):  # what the system closes of a process that died
        assert part is not None
        part.close()
    for size in ((16, 16), (640, 360)):
        with open_sink("touchshm:stage") as sink:
            sink.write(Frame(upright(*size)))
            assert shows(top, upright(*size))


def test_memory_of_a_reader_that_does_not_follow_is_never_overrun(windows: Windows) -> None:
    with open_sink("touchshm:stage") as sink:
        sink.write(Frame(upright(32, 24)))
        reader = Top(windows, "stage")
        assert reader._map("TouchSHMstage") is not None
        for _ in range(2):
            with pytest.raises(TextureError, match=r"^touchshm:stage: a program that reads a smaller picture keeps it"):
                sink.write(Frame(upright(640, 360)))
        sink.write(Frame(upright(32, 24)))
        reader.crash()
        sink.write(Frame(upright(640, 360)))
        assert shows(InTop(windows, "stage"), upright(640, 360))


def test_a_locked_info_segment_is_one_clear_line(windows: Windows) -> None:
    with open_sink("touchshm:stage") as sink:
        sink.open()
        windows.mutexes["TouchSHMTouchSHMstage4jhd783hMutex"].owner = "another"
        with pytest.raises(TextureError, match=r"^touchshm:stage: another program keeps the shared memory locked$"):
            sink.write(Frame(upright()))
        windows.mutexes["TouchSHMTouchSHMstage4jhd783hMutex"].owner = ""
        sink.write(Frame(upright()))


def test_what_goes_out_comes_back_in(windows: Windows) -> None:
    with open_sink("touchshm:loop") as sink, open_source("touchshm:loop") as source:
        for size in ((32, 24), (320, 240), (16, 16)):
            sink.write(Frame(upright(*size)))
            read_size(source, *size)


def test_the_layout_of_touchdesigners_shared_memory() -> None:
    data = touchshm.encode(upright(8, 4))
    assert len(data) == 56 + 8 * 4 * 4
    assert struct.unpack_from("<IIii", data) == (0xD95EF835, 2, 8, 4)
    assert struct.unpack_from("<I", data, 24) == (37,)
    assert struct.unpack_from("<q", data, 32) == (128,)
    assert struct.unpack_from("<i", data, 40) == (56,)
    assert data[56:60] == upright(8, 4)[-1, 0].tobytes(), "bottom row first"
    header = touchshm.parse_header(data)
    assert np.array_equal(touchshm.decode(header, data[header.data_offset :]), upright(8, 4))


@pytest.mark.parametrize("pixel_format", [touchshm.BGRA8, touchshm.RGBA16F, touchshm.RGBA32F])
def test_the_other_pixel_formats_of_touchdesigner(pixel_format: int) -> None:
    header = touchshm.Header(8, 4, pixel_format)
    flipped = upright(8, 4)[::-1]
    if pixel_format == touchshm.BGRA8:
        image = flipped[..., [2, 1, 0, 3]].tobytes()
    else:
        image = (flipped / 255.0).astype(np.float16 if pixel_format == touchshm.RGBA16F else np.float32).tobytes()
    assert len(image) == header.data_size
    assert np.abs(touchshm.decode(header, image).astype(int) - upright(8, 4)).max() <= 1


@pytest.mark.parametrize(
    ("offset", "corruption"), [(0, b"\0\0\0\0"), (24, struct.pack("<I", 9)), (8, struct.pack("<i", -5))]
)
def test_an_invalid_header_of_shared_memory_is_rejected(offset: int, corruption: bytes) -> None:
    data = bytearray(touchshm.encode(upright(8, 4)))
    data[offset : offset + 4] = corruption
    with pytest.raises(SourceLost):
        touchshm.parse_header(bytes(data))
