"""Video files that users name: local files of known formats, of a size that fits into memory."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import av
from av.error import FFmpegError

from engine.shared.user_files import MAX_IMAGE_PIXELS, check_regular

#: Demuxers that are used. Playlists (hls, concat, dash …) are missing: they open what is named in them.
FORMATS = (
    "mov,matroska,avi,mpeg,mpegts,mpegvideo,m4v,h264,hevc,av1,obu,ivf,flv,asf,mxf,ogg,nut,yuv4mpegpipe,dv,wtv,rm,vc1,"
    "mjpeg,gif,apng,image2,png_pipe,jpeg_pipe,webp_pipe,bmp_pipe,tiff_pipe,exr_pipe,tga_pipe,psd_pipe,dpx_pipe,"
    "ppm_pipe,pgm_pipe,pam_pipe,jpegxl_pipe,jpegxl_anim"
)
_OPTIONS = {
    "protocol_whitelist": "file",
    "format_whitelist": FORMATS,
    "pattern_type": "none",  # %d in a name is no sequence
    "max_pixels": str(MAX_IMAGE_PIXELS),
}


def open_video(path: Path) -> tuple[Any, Any]:
    """Return a container of PyAV and its first video stream. Raises OSError.

    An image is a video of one frame.
    """
    check_regular(path)
    try:
        container = av.open(os.path.abspath(path), options=_OPTIONS)  # an absolute path is never taken for a URL
    except FFmpegError as error:
        raise OSError(errno.EINVAL, f"not a video or image of a known format ({error.strerror})") from None
    try:
        if not container.streams.video:
            raise OSError(errno.EINVAL, "the file has no video stream")
        stream = container.streams.video[0]
        limit = f"more than {MAX_IMAGE_PIXELS / 1e6:.0f} megapixels"
        if not stream.width * stream.height:
            raise OSError(errno.EINVAL, f"its pictures cannot be read, or have {limit}")
        if stream.width * stream.height > MAX_IMAGE_PIXELS:
            raise OSError(errno.EFBIG, f"a video of {stream.width}×{stream.height}, {limit}")
        stream.codec_context.options = {"max_pixels": str(MAX_IMAGE_PIXELS)}  # its size may change later
    except BaseException:
        container.close()
        raise
    return container, stream
