"""Videos and images that users name: what is no plain local file, or would not fit into memory, is one line."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from bridge.commands.clip_reader import ClipReader
from bridge.errors import UserError
from bridge.stress.abuse_files import make_png_bomb
from bridge.textures import TextureError, open_sink, open_source
from engine.shared.frame import Frame
from engine.shared.user_files import MAX_IMAGE_PIXELS


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    path = tmp_path / "clip.mp4"
    with open_sink(f"file:{path}") as sink:
        for level in (0, 255):
            sink.write(Frame(np.full((48, 64, 4), level, np.uint8)))
    return path


def reasons(path: str | Path) -> tuple[str, str]:
    """Return why a path is refused as a source and as a clip."""
    with pytest.raises(TextureError) as as_source:
        open_source(f"file:{path}").read(1.0)
    with pytest.raises(UserError) as as_clip:
        list(ClipReader(Path(path)))
    assert "\n" not in str(as_source.value) + str(as_clip.value)
    return str(as_source.value), str(as_clip.value)


@pytest.mark.skipif(sys.platform == "win32", reason="needs named pipes and devices")
def test_a_pipe_or_a_device_is_refused_without_a_wait(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    assert all("a pipe, not a regular file" in reason for reason in reasons(tmp_path / "pipe.mp4"))
    assert all("a device, not a regular file" in reason for reason in reasons("/dev/zero"))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("list.m3u8", "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nclip.mp4\n#EXT-X-ENDLIST\n"),
        ("list.ffconcat", "ffconcat version 1.0\nfile clip.mp4\n"),
        ("list.mp4", "ffconcat version 1.0\nfile clip.mp4\n"),
    ],
)
def test_a_playlist_is_not_followed(clip: Path, name: str, text: str) -> None:
    (clip.parent / name).write_text(text, encoding="utf-8")
    assert all("not a video or image of a known format" in reason for reason in reasons(clip.parent / name))


def test_a_name_is_never_a_url(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(clip.parent)
    for url in ("http://127.0.0.1:9/clip.mp4", "concat:clip.mp4|clip.mp4", "subfile,,start,0,end,9,,:clip.mp4"):
        assert all("no such file" in reason for reason in reasons(url))
    assert len(list(ClipReader(Path("clip.mp4")))) == 2


def test_a_sign_for_a_sequence_is_a_part_of_the_name(clip: Path) -> None:
    cv2.imwrite(str(clip.parent / "take%d.png"), np.zeros((8, 8, 3), np.uint8))
    os.rename(clip.parent / "take%d.png", clip.parent / "take%02d.png")
    assert len(list(ClipReader(clip.parent / "take%02d.png"))) == 1


def test_a_picture_that_does_not_fit_into_memory_is_not_decoded(tmp_path: Path) -> None:
    bomb = make_png_bomb(tmp_path / "bomb.png")
    assert all("megapixels" in reason for reason in reasons(bomb))
    with pytest.raises(UserError, match=f"more than {MAX_IMAGE_PIXELS / 1e6:.0f} megapixels"):
        list(ClipReader(tmp_path))
