"""Textures: each transport of this machine with real data; the byte layouts of the others."""

from __future__ import annotations

import sys
import time
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from bridge.images import fit, resize, swap_red_blue
from bridge.textures import TextureError, default_source, open_sink, open_source
from bridge.textures.base import Source, SourceLost
from bridge.textures.file import VideoWriter
from bridge.textures.ndi import match_sender
from bridge.textures.pattern import PATTERNS, draw
from engine.shared.frame import Frame, Pixels
from tests.bridge.textures.pictures import read_frame


def ramp(width: int = 64, height: int = 48) -> Pixels:
    pixels = np.full((height, width, 4), 255, np.uint8)
    pixels[..., 0] = np.linspace(0, 255, width)[None]
    pixels[..., 1] = np.linspace(0, 255, height)[:, None]
    pixels[..., 2] = 30
    return pixels


def write_video(path: Path, count: int, rate: int = 25) -> None:
    writer = VideoWriter(path, rate=Fraction(rate))
    for i in range(count):
        pixels = np.full((48, 64, 4), 255, np.uint8)
        pixels[..., :3] = i * 20
        writer.write(pixels)
    writer.close()


@pytest.mark.parametrize("name", PATTERNS)
def test_patterns_are_frames_and_move(name: str) -> None:
    with open_source(f"pattern:{name}?size=96x64&fps=200") as source:
        first, later = read_frame(source), [read_frame(source) for _ in range(20)][-1]
    assert first.pixels.shape == (64, 96, 4)
    assert first.pixels.dtype == np.uint8
    assert later.sequence == first.sequence + 20
    assert later.captured_at > first.captured_at
    assert np.array_equal(first.pixels, later.pixels) == (name == "still")
    assert draw(name, 640, 360, 1.0).std() > 20


def test_a_pattern_keeps_its_rate() -> None:
    with open_source("pattern:ball?size=64x64&fps=50") as source:
        read_frame(source)
        start = time.perf_counter()
        for _ in range(25):
            read_frame(source)
    assert 0.4 < time.perf_counter() - start < 1.0


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("tape:x", "available here"),
        ("null:", "is not a source"),
        ("noscheme", "available here"),
        ("pattern:unheard", "plasma"),
        ("pattern:ball?size=big", "WxH"),
        ("pattern:ball?fps=0", "fps"),
        ("file:/no/such.mp4", "no such file"),
        ("camera:front", "number"),
        ("camera:97", "no camera"),
    ],
)
def test_a_wrong_source_is_one_clear_line(url: str, message: str) -> None:
    with pytest.raises(TextureError, match=message) as error:
        open_source(url)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "scheme",
    [s for s in ("spout", "syphon", "touchshm") if s != {"win32": "spout", "darwin": "syphon"}.get(sys.platform)],
)
def test_a_transport_of_another_platform_says_so(scheme: str) -> None:
    if sys.platform == "win32" and scheme == "touchshm":
        pytest.xfail("this platform has it")
    for open_url in (open_source, open_sink):
        with pytest.raises(TextureError, match="only"):
            open_url(f"{scheme}:x")


def test_a_file_is_looped_at_its_own_rate(tmp_path: Path) -> None:
    write_video(tmp_path / "ten.mp4", 10, rate=20)
    with open_source(f"file:{tmp_path / 'ten.mp4'}") as source:
        start = time.perf_counter()
        values = [int(read_frame(source).pixels[..., 0].mean()) for _ in range(25)]
        seconds = time.perf_counter() - start
    assert 1.0 < seconds < 2.0, "25 frames at 20 a second"
    expected = [(i % 10) * 20 for i in range(25)]
    assert np.abs(np.array(values) - expected).max() < 6


def test_a_late_reader_gets_the_present_frame(tmp_path: Path) -> None:
    write_video(tmp_path / "ten.mp4", 10, rate=20)
    with open_source(f"file:{tmp_path / 'ten.mp4'}") as source:
        read_frame(source)
        time.sleep(0.32)
        assert read_frame(source).pixels[..., 0].mean() / 20 == pytest.approx(6, abs=1.5)


def test_an_image_file_is_a_source(tmp_path: Path) -> None:
    import cv2

    cv2.imwrite(str(tmp_path / "one.png"), ramp()[..., 2::-1])
    with open_source(f"file:{tmp_path / 'one.png'}") as source:
        frames = [read_frame(source) for _ in range(3)]
    assert all(np.array_equal(frame.pixels, ramp()) for frame in frames)


@pytest.mark.parametrize("content", [b"", b"not a video at all" * 100])
def test_a_broken_file_is_one_clear_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "broken.mp4").write_bytes(content)
    with pytest.raises(TextureError, match="broken"):
        open_source(f"file:{tmp_path / 'broken.mp4'}")


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".webm", ".mov"])
def test_a_recording_has_real_timestamps_and_no_repeated_frames(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"take{suffix}"
    first, second = ramp(), 255 - ramp()
    with open_sink(f"file:{path}") as sink:
        for pixels, pause in ((first, 0.1), (first, 0.3), (second, 0.1), (second, 0.0)):
            sink.write(Frame(pixels))
            time.sleep(pause)
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
    assert len(frames) == 2
    times = [frame.time for frame in frames]
    assert times[1] is not None
    assert times[0] is not None
    assert times[1] - times[0] == pytest.approx(0.4, abs=0.1)
    recorded = frames[0].to_ndarray(format="rgba").astype(int)
    assert np.abs(recorded - first)[..., :3].mean() < 8


def test_a_recording_of_odd_and_changing_size(tmp_path: Path) -> None:
    path = tmp_path / "take.mp4"
    with open_sink(f"file:{path}") as sink:
        for width, height in ((65, 49), (65, 49), (128, 96)):
            sink.write(Frame(ramp(width, height)))
            time.sleep(0.02)
    with av.open(str(path)) as container:
        assert [(f.width, f.height) for f in container.decode(video=0)] == [(64, 48)] * 3


def test_a_recording_needs_a_supported_suffix_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(TextureError, match="mp4"):
        open_sink(f"file:{tmp_path / 'take.avi2'}")
    with pytest.raises(TextureError, match="folder"):
        open_sink(f"file:{tmp_path / 'none' / 'take.mp4'}")


def test_the_null_sink_counts_frames() -> None:
    with open_sink("null:") as sink:
        sink.write(Frame(ramp()))
    assert sink.frames == 1


def test_the_default_source_opens() -> None:
    open_source(default_source()).close()


def test_crop_fit_and_stretch() -> None:
    wide = np.zeros((100, 200, 4), np.uint8)
    wide[:, 50:150] = 200
    assert (fit(wide, 64, 64, "crop") == 200).all()
    boxed = fit(wide, 64, 64, "fit")
    assert (boxed[:16, :, :3] == 0).all()
    assert (boxed[-16:, :, :3] == 0).all()
    assert boxed[32, 32, 0] == 200
    stretched = fit(wide, 64, 64, "stretch")
    assert stretched[32, 4, 0] == 0
    assert stretched[32, 32, 0] == 200
    for mode in ("crop", "fit", "stretch"):
        for shape in ((1, 1), (3, 2000), (1080, 1920), (64, 64)):
            assert fit(np.zeros((*shape, 4), np.uint8), 64, 48, mode).shape == (48, 64, 4)
    assert resize(wide, 300, 50).shape == (50, 300, 4)


@pytest.mark.parametrize("size", [(1080, 1080), (1080, 1918), (540, 961), (203, 1030)])
def test_reduction_is_an_area_average_for_every_memory_layout(size: tuple[int, int]) -> None:
    height, width = size
    y, x = np.mgrid[:height, :width]
    waves = np.stack(
        [127 + 120 * np.sin(x / 9), 127 + 120 * np.cos(y / 7), 127 + 120 * np.sin((x + y) / 12), 0 * x + 255], -1
    ).astype(np.uint8)
    for pixels in (waves, waves[::-1], waves[:, ::-1], waves[3:-3, 5:-5], waves[..., ::-1]):
        original = pixels.copy()
        small = resize(pixels, 200, 100)
        averaged = cv2.resize(np.ascontiguousarray(pixels), (200, 100), interpolation=cv2.INTER_AREA)
        assert small.shape == (100, 200, 4)
        assert np.abs(small.astype(int) - averaged).mean() < 1.5
        assert np.array_equal(pixels, original)


def test_colour_order_is_swapped_both_ways() -> None:
    assert np.array_equal(swap_red_blue(ramp())[..., :3], ramp()[..., 2::-1])
    assert np.array_equal(swap_red_blue(swap_red_blue(ramp())), ramp())


class Flaky(Source):
    """Loses its sender after each frame and finds it at the next attempt."""

    def _read(self, timeout: float) -> Pixels | None:
        if self.frames > self.losses:
            raise SourceLost("unplugged")
        return ramp()


def test_a_source_that_is_opened_and_entered_is_opened_once() -> None:
    opened: list[Source] = []

    class Counted(Flaky):
        def _open(self) -> None:
            opened.append(self)

    with Counted("counted:").open() as source:
        read_frame(source)
    assert len(opened) == 1


def test_a_source_waits_for_a_sender_that_vanished() -> None:
    with Flaky("flaky:") as source:
        frames = [read_frame(source) for _ in range(3)]
    assert [frame.sequence for frame in frames] == [1, 2, 3]
    assert source.losses == 2


def test_ndi_senders_are_selected_by_full_name_stream_name_or_part() -> None:
    names = ["STUDIO (Resolume)", "STUDIO (Resolume 2)", "LAPTOP (phosphene-in)"]
    assert match_sender("STUDIO (Resolume 2)", names) == "STUDIO (Resolume 2)"
    assert match_sender("Resolume", names) == "STUDIO (Resolume)"
    assert match_sender("laptop", names) == "LAPTOP (phosphene-in)"
    assert match_sender("", names) == "STUDIO (Resolume)"
    assert match_sender("OBS", names) is None


@pytest.mark.parametrize(
    "picture",
    [
        np.zeros((4, 4, 3), np.uint8),
        np.zeros((4, 4, 4), np.float32),
        np.zeros((4, 4), np.uint8),
        np.zeros((0, 4, 4), np.uint8),
    ],
)
def test_pixels_of_another_format_are_one_clear_line(picture: np.ndarray) -> None:
    class Wrong(Source):
        def _read(self, timeout: float) -> np.ndarray:
            return picture

    with Wrong("wrong:") as source, pytest.raises(TextureError, match="unsupported image format"):
        source.read(0.1)
