"""The resolution of timers on Windows: 15.6 ms unless a process asks for 1 ms. Not run on Windows yet.

Moments are read with ``time.perf_counter``, which is the same clock in every process of a machine. It is
``time.monotonic`` on Linux and macOS; on Windows that one steps by 15.6 ms before Python 3.13.
"""

from __future__ import annotations

import contextlib
import ctypes
import sys

#: Timer resolution that is asked for, in milliseconds.
RESOLUTION_MS = 1
#: ``ProcessPowerThrottling`` and the flags of ``PROCESS_POWER_THROTTLING_STATE``, since Windows 11.
PROCESS_POWER_THROTTLING = 4
EXECUTION_SPEED, IGNORE_TIMER_RESOLUTION = 0x1, 0x4


class PowerThrottlingState(ctypes.Structure):
    """``PROCESS_POWER_THROTTLING_STATE``: what the process decides about itself, and which of that it wants."""

    _fields_ = (("Version", ctypes.c_uint32), ("ControlMask", ctypes.c_uint32), ("StateMask", ctypes.c_uint32))


def request_fine_timers() -> None:
    """Ask Windows for timers of 1 ms, also while no window of the process is seen; elsewhere do nothing.

    The request ends with the process. Called once in each process that paces frames.
    """
    if sys.platform != "win32":
        return
    with contextlib.suppress(OSError, AttributeError):  # then waits are coarser, and all else works
        ctypes.WinDLL("winmm").timeBeginPeriod(RESOLUTION_MS)
    with contextlib.suppress(OSError, AttributeError):  # Windows 10 has no such call, and needs none
        kernel = ctypes.WinDLL("kernel32")
        kernel.GetCurrentProcess.restype = ctypes.c_void_p
        kernel.SetProcessInformation.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p, ctypes.c_uint32)
        state = PowerThrottlingState(1, EXECUTION_SPEED | IGNORE_TIMER_RESOLUTION, 0)
        kernel.SetProcessInformation(
            kernel.GetCurrentProcess(), PROCESS_POWER_THROTTLING, ctypes.byref(state), ctypes.sizeof(state)
        )
