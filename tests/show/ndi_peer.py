"""An independent NDI sender and receiver: each is a process that uses the NDI package and nothing of Phosphene.

``python ndi_peer.py send NAME`` sends a moving picture at 30 frames a second.
``python ndi_peer.py receive NAME SECONDS`` prints one JSON line a second: the number of new frames, the number of
different pictures, mean colour and size.
"""

from __future__ import annotations

import json
import sys
import time
from fractions import Fraction

import numpy as np

WIDTH, HEIGHT, RATE = 320, 240, 30


def send(name: str) -> None:
    from cyndilib.sender import Sender
    from cyndilib.video_frame import VideoSendFrame
    from cyndilib.wrapper.ndi_structs import FourCC

    video = VideoSendFrame()
    video.set_resolution(WIDTH, HEIGHT)
    video.set_frame_rate(Fraction(RATE))
    video.set_fourcc(FourCC.BGRA)
    sender = Sender(name)
    sender.set_video_frame(video)
    sender.open()
    x = np.arange(WIDTH)[None, :]
    y = np.arange(HEIGHT)[:, None]
    count = 0
    while True:
        wave = (127 + 120 * np.sin((x + y + 4 * count) / 20)).astype(np.uint8)
        picture = np.dstack([wave, wave[::-1], wave[:, ::-1], np.full_like(wave, 255)])
        sender.write_video(np.ascontiguousarray(picture).reshape(-1))
        count += 1
        time.sleep(1 / RATE)


def receive(name: str, seconds: float) -> None:
    from cyndilib.finder import Finder
    from cyndilib.receiver import Receiver
    from cyndilib.video_frame import VideoFrameSync
    from cyndilib.wrapper.ndi_recv import RecvBandwidth, RecvColorFormat

    limit, names = time.perf_counter() + 30, []
    while not names:
        if time.perf_counter() > limit:
            sys.exit(f"no NDI sender named {name} within 30 s")
        # Without mDNS any one sender process of the machine answers: search again until it is the right one.
        finder = Finder()
        finder.open()
        finder.wait_for_sources(1.0)
        names = [n for n in finder.get_source_names() if f"({name})" in n]
    receiver = Receiver(color_format=RecvColorFormat.RGBX_RGBA, bandwidth=RecvBandwidth.highest)
    video = VideoFrameSync()
    receiver.frame_sync.set_video_frame(video)
    receiver.set_source(finder.get_source(names[0]))
    end, report = time.perf_counter() + seconds, time.perf_counter() + 1
    stamps: set[float] = set()
    colour, size, hashes, last = [0.0, 0.0, 0.0], [0, 0], set(), 0.0
    while time.perf_counter() < end:
        receiver.frame_sync.capture_video()
        stamp = video.get_timestamp_posix()
        if video.xres and stamp != last:
            last = stamp
            view = np.asarray(video.get_array()).reshape(video.yres, video.xres, 4)
            colour, size = [float(view[..., c].mean()) for c in range(3)], [video.xres, video.yres]
            hashes.add(hash(view.tobytes()))
            stamps.add(stamp)
            del view
        if time.perf_counter() >= report:
            print(
                json.dumps({"frames": len(stamps), "pictures": len(hashes), "colour": colour, "size": size}), flush=True
            )
            stamps.clear()
            hashes.clear()
            report += 1
        time.sleep(0.002)


if __name__ == "__main__":
    if sys.argv[1] == "send":
        send(sys.argv[2])
    else:
        receive(sys.argv[2], float(sys.argv[3]))
