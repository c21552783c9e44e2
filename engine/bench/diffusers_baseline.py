"""What a user of diffusers would run instead, in a process of its own: nothing that this one has set for itself helps or harms it."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Sequence
from multiprocessing.connection import Connection
from types import TracebackType

import torch
from PIL import Image

from engine.bench.random_weights import parts, pipeline
from engine.models import ModelError
from engine.models.hf_imports import import_quietly
from engine.shared.frame import Pixels
from engine.shared.options import EngineOptions
from engine.shared.parameter import InvalidValue

ENDED = "the process of the pipeline that is compared has ended"


class Peer:
    """``AutoPipelineForImage2Image`` over the weights called ``name``, in each of ``dtypes``; called, it makes one picture.

    Raises BadValue where diffusers has no such pipeline, or its process ends.
    """

    def __init__(
        self,
        name: str,
        dtypes: Sequence[torch.dtype],
        device: torch.device,
        options: EngineOptions,
        prompt: str,
        seed: int,
    ) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        arguments = (theirs, name, tuple(dtypes), str(device), options, prompt, seed)
        self._process = context.Process(target=_serve, args=arguments, name="phosphene-peer", daemon=True)
        self._process.start()
        theirs.close()
        try:
            self._answer()
        except InvalidValue:
            self.close()
            raise

    def __call__(self, dtype: torch.dtype, pixels: Pixels, steps: int) -> None:
        """One picture of ``pixels`` (H, W, 3) at half strength, in so many steps."""
        try:
            self._pipe.send((dtype, pixels, steps))
        except OSError:
            raise InvalidValue(ENDED) from None
        self._answer()

    def __enter__(self) -> Peer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the process."""
        self._pipe.close()
        self._process.join(5)
        if self._process.is_alive():
            self._process.kill()

    def _answer(self) -> None:
        try:
            told = self._pipe.recv()
        except (EOFError, OSError):
            raise InvalidValue(ENDED) from None
        if told:
            raise InvalidValue(told)


def _serve(
    pipe: Connection,
    name: str,
    dtypes: Sequence[torch.dtype],
    device: str,
    options: EngineOptions,
    prompt: str,
    seed: int,
) -> None:
    """The process: an answer for each picture, empty where all went well."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for who asks
    import_quietly()
    place = torch.device(device)
    try:
        pipes = {dtype: pipeline(parts(name, dtype, place, options), place) for dtype in dtypes}
    except (InvalidValue, ModelError) as error:
        pipe.send(str(error))
        return
    pipe.send("")
    try:
        while True:
            dtype, pixels, steps = pipe.recv()
            pipes[dtype](prompt=prompt, image=Image.fromarray(pixels), strength=0.5, num_inference_steps=2 * steps, guidance_scale=1.0,
                         generator=torch.Generator().manual_seed(seed))  # fmt: skip
            pipe.send("")
    except (EOFError, OSError):
        pass  # nobody asks any more
