"""Files that users name: regular files only, bounded in bytes and pixels, and never a wait on a pipe or a device.

Every function raises OSError with a ``strerror`` for people. A slow disk or network folder can still delay a read:
call from a thread that may wait.
"""

from __future__ import annotations

import errno
import io
import itertools
import os
import stat
import warnings
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

#: Largest image file that is read, and most pixels that are decoded.
MAX_IMAGE_BYTES = 64 << 20
MAX_IMAGE_PIXELS = 8192 * 8192
#: Formats that are decoded, by their names in Pillow.
IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF")
#: Files of effects that are read, and the largest one: while Python parses it, no other thread runs.
MAX_HOOK_FILES, MAX_HOOK_BYTES = 100, 1 << 16
#: Entries of a folder that are looked at.
MAX_FOLDER_ENTRIES = 100_000


def check_regular(path: Path) -> os.stat_result:
    """Return the status of a regular file; links are followed. Raises OSError for anything else."""
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, _name_kind(status.st_mode), str(path))
    return status


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading; links are followed. Raises OSError for anything else, without waiting."""
    check_regular(path)  # a device may act when it is opened
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
    descriptor = os.open(path, flags)
    try:
        mode = os.fstat(descriptor).st_mode  # another file may have taken its place
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, _name_kind(mode), str(path))
        return open(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_bytes(path: Path, max_bytes: int) -> bytes:
    """Return the content of a regular file of at most ``max_bytes``. Raises OSError."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > max_bytes:
            raise OSError(errno.EFBIG, f"larger than {_format_bytes(max_bytes)}", str(path))
        return file.read(size)  # no more than its size: files of the kernel have none, and some never end


def list_folder(folder: Path, suffix: str, max_files: int) -> list[Path]:
    """Return the first ``max_files`` names that end in ``suffix``, sorted, without hidden ones.

    A folder that cannot be listed has none, and only its first MAX_FOLDER_ENTRIES entries are looked at.
    """
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in itertools.islice(entries, MAX_FOLDER_ENTRIES)]
    except (OSError, ValueError):
        return []
    return [folder / name for name in sorted(names) if os.path.normcase(name).endswith(suffix) and name[0] != "."][
        :max_files
    ]


def read_image(path: Path, max_bytes: int = MAX_IMAGE_BYTES, max_pixels: int = MAX_IMAGE_PIXELS) -> NDArray[np.uint8]:
    """Return an image file as BGR, (height, width, 3), upright as its orientation tag says. Raises OSError.

    Its size is read from its header first, so an image that would not fit into memory is never decoded.
    """
    return decode_image(read_bytes(path, max_bytes), max_pixels)


def decode_image(data: bytes, max_pixels: int = MAX_IMAGE_PIXELS) -> NDArray[np.uint8]:
    """Return the image in ``data`` as ``read_image`` does. Raises OSError."""
    import cv2
    from PIL import Image, UnidentifiedImageError

    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # the size is checked below
    try:
        with Image.open(io.BytesIO(data), formats=IMAGE_FORMATS) as image:
            width, height = image.size
    except UnidentifiedImageError:
        raise OSError(errno.EINVAL, f"not an image of a known format ({', '.join(IMAGE_FORMATS)})") from None
    except Image.DecompressionBombError:
        raise OSError(errno.EFBIG, f"an image of more than {max_pixels / 1e6:.0f} megapixels") from None
    except (ValueError, SyntaxError, OverflowError, MemoryError) as error:
        raise OSError(errno.EINVAL, f"not an image that can be read ({error})") from None
    if width * height > max_pixels:
        raise OSError(errno.EFBIG, f"an image of {width}×{height}, more than {max_pixels / 1e6:.0f} megapixels")
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    except (cv2.error, MemoryError):
        pixels = None
    if pixels is None:
        raise OSError(errno.EINVAL, "not an image that can be read")
    return np.asarray(pixels, np.uint8)


def _name_kind(mode: int) -> str:
    """Return why a file of this mode is refused."""
    names = {
        stat.S_IFDIR: "a folder",
        stat.S_IFIFO: "a pipe",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
        stat.S_IFSOCK: "a socket",
    }
    return f"{names.get(stat.S_IFMT(mode), 'a special file')}, not a regular file"


def _format_bytes(count: int) -> str:
    return f"{count >> 20} MiB" if count >= 1 << 20 else f"{count >> 10} KiB" if count >= 1 << 10 else f"{count} bytes"
