"""Named shared memory of Windows and its mutex, through kernel32. Never run on Windows; tested against a stand-in.

Windows keeps an object as long as anybody has it open. Creating one whose name exists returns that, in its old size.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

PAGE_READWRITE, ALL_ACCESS = 0x04, 0xF001F
#: Answers of WaitForSingleObject with which the mutex is ours: released by its owner, or left by one that died.
WAIT_OBJECT_0, WAIT_ABANDONED = 0x0, 0x80


class _MemoryInformation(ctypes.Structure):
    """MEMORY_BASIC_INFORMATION of 64-bit Windows."""

    _fields_ = (
        ("base_address", ctypes.c_void_p),
        ("allocation_base", ctypes.c_void_p),
        ("allocation_protect", ctypes.c_uint32),
        ("partition", ctypes.c_uint16),
        ("region_size", ctypes.c_size_t),
        ("state", ctypes.c_uint32),
        ("protect", ctypes.c_uint32),
        ("type", ctypes.c_uint32),
    )


def _load_kernel32() -> Any:
    """Return kernel32 with the signatures of what is called here: without them, handles are cut to 32 bits."""
    kernel32: Any = ctypes.WinDLL("kernel32", use_last_error=True)  # type: ignore[attr-defined]
    handle, dword, text = ctypes.c_void_p, ctypes.c_uint32, ctypes.c_wchar_p
    signatures: dict[str, tuple[Any, list[Any]]] = {
        "CreateFileMappingW": (handle, [handle, ctypes.c_void_p, dword, dword, dword, text]),
        "OpenFileMappingW": (handle, [dword, ctypes.c_int, text]),
        "MapViewOfFile": (ctypes.c_void_p, [handle, dword, dword, dword, ctypes.c_size_t]),
        "VirtualQuery": (ctypes.c_size_t, [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]),
        "UnmapViewOfFile": (ctypes.c_int, [ctypes.c_void_p]),
        "CreateMutexW": (handle, [ctypes.c_void_p, ctypes.c_int, text]),
        "WaitForSingleObject": (dword, [handle, dword]),
        "ReleaseMutex": (ctypes.c_int, [handle]),
        "CloseHandle": (ctypes.c_int, [handle]),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(kernel32, name)
        function.restype, function.argtypes = result, arguments
    return kernel32


class NamedMutex:
    """The mutex of a name, created where it does not exist. Raises OSError."""

    def __init__(self, name: str) -> None:
        self._kernel32 = _load_kernel32()
        self._handle = self._kernel32.CreateMutexW(None, False, name)
        if not self._handle:
            raise OSError(f"the mutex {name} cannot be opened")

    @contextmanager
    def hold(self, seconds: float) -> Iterator[bool]:
        """Hold the mutex inside; the value is False where another process kept it for ``seconds``."""
        answer = self._kernel32.WaitForSingleObject(self._handle, int(seconds * 1000))
        held = answer in (WAIT_OBJECT_0, WAIT_ABANDONED)
        try:
            yield held
        finally:
            if held:
                self._kernel32.ReleaseMutex(self._handle)

    def close(self) -> None:
        """Close the handle."""
        self._kernel32.CloseHandle(self._handle)


class NamedMemory:
    """A view of the whole memory of a name: opened, or created with ``create_size`` bytes.

    ``size`` is what Windows reports, in bytes: memory that existed before may be smaller than ``create_size``. Raises
    FileNotFoundError where it is not to be created and there is none, OSError where it cannot be mapped.
    """

    def __init__(self, name: str, create_size: int = 0) -> None:
        kernel32 = self._kernel32 = _load_kernel32()
        if create_size:
            high, low = create_size >> 32, create_size & 0xFFFFFFFF
            self._handle = kernel32.CreateFileMappingW(ctypes.c_void_p(-1), None, PAGE_READWRITE, high, low, name)
        else:
            self._handle = kernel32.OpenFileMappingW(ALL_ACCESS, False, name)
        if not self._handle:
            raise OSError(f"{name} cannot be created") if create_size else FileNotFoundError(f"there is no {name}")
        self._address = kernel32.MapViewOfFile(self._handle, ALL_ACCESS, 0, 0, 0)
        if not self._address:
            kernel32.CloseHandle(self._handle)
            raise OSError(f"{name} cannot be mapped")
        information = _MemoryInformation()
        size = ctypes.sizeof(information)
        known = kernel32.VirtualQuery(self._address, ctypes.byref(information), size) == size
        self.size = int(information.region_size) if known else 0

    def read(self, start: int, count: int) -> bytes:
        """Return ``count`` bytes from ``start``. Raises ValueError beyond the end."""
        self._check(start, count)
        return ctypes.string_at(self._address + start, count)

    def write(self, start: int, data: bytes) -> None:
        """Write ``data`` at ``start``. Raises ValueError beyond the end."""
        self._check(start, len(data))
        ctypes.memmove(self._address + start, data, len(data))

    def _check(self, start: int, count: int) -> None:
        if start < 0 or count < 0 or start + count > self.size:
            raise ValueError(f"{count} bytes from {start} are outside a shared memory of {self.size} bytes")

    def close(self) -> None:
        """Unmap the memory and close its handle."""
        self._kernel32.UnmapViewOfFile(self._address)
        self._kernel32.CloseHandle(self._handle)
