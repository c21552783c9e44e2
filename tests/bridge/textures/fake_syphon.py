"""A stand-in for syphon-python 0.1.1 and 0.2.0 and for the run loops of macOS.

Names, argument orders and return values are those of the package's sources. What Syphon's framework does behind them:
servers are announced through the run loop of the main thread alone, a client drops a server that does not answer a
request within six seconds, and row 0 of a surface is the bottom of the picture.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import pytest

RGBA8, BGRA8 = 70, 80
#: How long a notification travels between programs.
TRAVEL_SECONDS = 0.02


class Texture:
    """A Metal texture. ``rows`` are its bytes (height, width, 4)."""

    def __init__(self, width: int, height: int, pixel_format: int) -> None:
        self.rows = np.zeros((height, width, 4), np.uint8)
        self._format = pixel_format

    def width(self) -> int:
        return self.rows.shape[1]

    def height(self) -> int:
        return self.rows.shape[0]

    def pixelFormat(self) -> int:  # noqa: N802 -- Metal's name
        return self._format


@dataclass
class SyphonServerDescription:
    uuid: str
    name: str
    app_name: str
    icon: Any
    raw: Any


class Surface:
    """What a server shares: BGRA, its row 0 the bottom of the picture. ``picture`` is RGBA, top row first."""

    def __init__(self) -> None:
        self.rows: np.ndarray | None = None
        self.number, self.alive = 0, True

    @property
    def picture(self) -> np.ndarray:
        """The picture as other programs show it."""
        assert self.rows is not None
        return self.rows[::-1][..., [2, 1, 0, 3]]

    @picture.setter
    def picture(self, pixels: np.ndarray) -> None:
        self.rows, self.number = pixels[..., [2, 1, 0, 3]][::-1].copy(), self.number + 1


class FakeSyphon:
    """The servers of a Mac. ``elsewhere`` are the names that other programs list of our servers."""

    def __init__(self) -> None:
        self.directory: list[SyphonServerDescription] = []
        self.published: dict[str, Surface] = {}
        self.elsewhere: set[str] = set()
        self._notifications: list[tuple[float, Callable[[], None]]] = []

    def start_server(self, app_name: str, name: str) -> Surface:
        """Start a server in another program: it is found once the main run loop has delivered its announcement."""
        surface = Surface()
        description = SyphonServerDescription(f"{app_name}-{name}-{id(surface)}", name, app_name, None, surface)
        self._notify(lambda: self.directory.append(description))
        return surface

    def end_server(self, surface: Surface) -> None:
        """End a server in another program."""
        surface.alive = False
        self._notify(lambda: self._forget(surface))

    def _forget(self, surface: Surface) -> None:
        self.directory = [entry for entry in self.directory if entry.raw is not surface]

    def request_servers(self) -> None:
        """Let another program start: it asks who is there, and everybody drops what does not answer."""
        self.elsewhere = set()
        self._notify(lambda: self.elsewhere.update(self.published))

    def _notify(self, notification: Callable[[], None]) -> None:
        self._notifications.append((time.perf_counter() + TRAVEL_SECONDS, notification))

    def deliver(self) -> int:
        """Deliver what has arrived for the main run loop."""
        arrived = [entry for entry in self._notifications if entry[0] <= time.perf_counter()]
        for entry in arrived:
            self._notifications.remove(entry)
            entry[1]()
        return len(arrived)

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let ``import syphon`` and ``import Foundation`` find this, on a system that says that it is macOS."""
        world = self

        class NSRunLoop:
            def __init__(self, is_main: bool) -> None:
                self._is_main = is_main

            @staticmethod
            def currentRunLoop() -> NSRunLoop:  # noqa: N802 -- Foundation's names
                return NSRunLoop(threading.current_thread() is threading.main_thread())

            def runMode_beforeDate_(self, mode: str, date: float, /) -> bool:  # noqa: N802
                assert mode == "kCFRunLoopDefaultMode"
                if not self._is_main:
                    return False  # it has no sources
                while not world.deliver() and time.perf_counter() < date:
                    time.sleep(0.001)
                return True

        class NSDate:
            @staticmethod
            def dateWithTimeIntervalSinceNow_(seconds: float, /) -> float:  # noqa: N802
                return time.perf_counter() + seconds

        class SyphonServerDirectory:
            def __init__(self) -> None:
                self.run_loop_interval = 1.0

            @property
            def servers(self) -> list[SyphonServerDescription]:
                self.update_run_loop()
                return list(world.directory)

            def update_run_loop(self) -> None:
                NSRunLoop.currentRunLoop().runMode_beforeDate_(
                    "kCFRunLoopDefaultMode", NSDate.dateWithTimeIntervalSinceNow_(self.run_loop_interval)
                )

        class SyphonMetalClient:
            def __init__(self, description: SyphonServerDescription, device: Any = None) -> None:
                if not description.raw.alive:
                    raise RuntimeError("Syphon could not create the client")
                self._surface, self._seen, self._stopped = description.raw, 0, False

            @property
            def is_valid(self) -> bool:
                return self._surface.alive and not self._stopped

            @property
            def has_new_frame(self) -> bool:
                return self.is_valid and self._surface.number != self._seen

            @property
            def new_frame_image(self) -> Texture | None:
                if self._surface.rows is None or self._stopped:
                    return None
                self._seen = self._surface.number
                texture = Texture(self._surface.rows.shape[1], self._surface.rows.shape[0], BGRA8)
                texture.rows = self._surface.rows.copy()
                return texture

            def stop(self) -> None:
                self._stopped = True

        class SyphonMetalServer:
            def __init__(self, name: str, device: Any = None, command_queue: Any = None) -> None:
                self.device = device or "the default device"
                self._name, self._surface = name, Surface()
                world.published[name] = self._surface
                world.elsewhere.add(name)

            def publish_frame_texture(
                self, texture: Texture, region: Any = None, size: Any = None, is_flipped: bool = False
            ) -> None:
                assert texture.pixelFormat() == BGRA8
                self._surface.rows = (texture.rows[::-1] if is_flipped else texture.rows).copy()
                self._surface.number += 1

            def stop(self) -> None:
                world.published.pop(self._name, None)
                world.elsewhere.discard(self._name)

        def create_mtl_texture(device: Any, width: int, height: int, pixel_format: int = RGBA8) -> Texture:
            assert device
            return Texture(width, height, pixel_format)

        def copy_image_to_mtl_texture(image: np.ndarray, texture: Texture) -> None:
            assert image.shape == texture.rows.shape
            texture.rows = np.frombuffer(image.tobytes(), np.uint8).reshape(image.shape)

        def copy_mtl_texture_to_image(texture: Texture) -> np.ndarray:
            if texture.pixelFormat() not in (RGBA8, BGRA8):
                raise Exception("Not correct pixel format")
            return np.frombuffer(texture.rows.tobytes(), np.uint8).reshape(texture.rows.shape)

        contents: dict[str, dict[str, Any]] = {
            "Foundation": {
                "NSDate": NSDate, "NSRunLoop": NSRunLoop, "NSDefaultRunLoopMode": "kCFRunLoopDefaultMode",
            },
            "syphon": {
                "SyphonServerDirectory": SyphonServerDirectory, "SyphonMetalClient": SyphonMetalClient,
                "SyphonMetalServer": SyphonMetalServer, "SyphonServerDescription": SyphonServerDescription,
            },
            "syphon.utils": {},
            "syphon.utils.raw": {"create_mtl_texture": create_mtl_texture},
            "syphon.utils.numpy": {
                "copy_image_to_mtl_texture": copy_image_to_mtl_texture,
                "copy_mtl_texture_to_image": copy_mtl_texture_to_image,
            },
        }  # fmt: skip
        for name, parts in contents.items():
            module = ModuleType(name)
            vars(module).update(parts)
            monkeypatch.setitem(sys.modules, name, module)
        monkeypatch.setattr(sys, "platform", "darwin")
