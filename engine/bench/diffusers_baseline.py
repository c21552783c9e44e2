"""The diffusers baseline, in a separate process, which this process's settings can neither speed up nor slow down."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Sequence
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any

import torch
from PIL import Image

from engine.bench.random_weights import build_components, build_pipeline
from engine.models import ModelError
from engine.models.hf_imports import import_quietly
from engine.runtime.device import use_device
from engine.shared.frame import Pixels
from engine.shared.options import EngineOptions
from engine.shared.parameter import InvalidValue

PROCESS_ENDED = "the diffusers baseline process has ended"


class DiffusersBaseline:
    """``AutoPipelineForImage2Image`` on the model ``name``, in each of ``dtypes``; a call generates one picture.

    Raises InvalidValue where diffusers has no such pipeline, or its process ends.
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
        self._connection, child = context.Pipe()
        arguments = (child, name, tuple(dtypes), str(device), options, prompt, seed)
        self._process = context.Process(target=_serve, args=arguments, name="phosphene-baseline", daemon=True)
        self._process.start()
        child.close()
        try:
            self._receive()
        except InvalidValue:
            self.close()
            raise

    def __call__(self, dtype: torch.dtype, pixels: Pixels, steps: int) -> None:
        """Generate one picture from ``pixels`` (H, W, 3) at half strength, in ``steps`` steps."""
        try:
            self._connection.send((dtype, pixels, steps))
        except OSError:
            raise InvalidValue(PROCESS_ENDED) from None
        self._receive()

    def __enter__(self) -> DiffusersBaseline:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the process."""
        self._connection.close()
        self._process.join(5)
        if self._process.is_alive():
            self._process.kill()

    def _receive(self) -> None:
        """Wait for the process's answer. Raises InvalidValue with its error."""
        try:
            error = self._connection.recv()
        except (EOFError, OSError):
            raise InvalidValue(PROCESS_ENDED) from None
        if error:
            raise InvalidValue(error)


def prompt_arguments(pipeline: Any, prompt: str) -> dict[str, Any]:
    """Return a prompt as a pipeline takes it.

    That is its text, or its embeddings where the pipeline expects more text encoders than the model has.
    """
    if getattr(pipeline, "text_encoder_2", pipeline.text_encoder) is not None:
        return {"prompt": prompt}
    tokens = pipeline.tokenizer(prompt, padding="max_length", truncation=True, return_tensors="pt").input_ids
    with torch.inference_mode():
        output = pipeline.text_encoder(tokens.to(pipeline.device))
    return {"prompt_embeds": output.last_hidden_state, "pooled_prompt_embeds": output.pooler_output}


def _serve(
    connection: Connection,
    name: str,
    dtypes: Sequence[torch.dtype],
    device_name: str,
    options: EngineOptions,
    prompt: str,
    seed: int,
) -> None:
    """Run the process: answer each picture with an error text, empty on success."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    import_quietly()
    device = torch.device(device_name)
    use_device(device)
    try:
        pipelines = {dtype: build_pipeline(build_components(name, dtype, device, options), device) for dtype in dtypes}
    except (InvalidValue, ModelError) as error:
        connection.send(str(error))
        return
    connection.send("")
    try:
        while True:
            dtype, pixels, steps = connection.recv()
            pipelines[dtype](
                **prompt_arguments(pipelines[dtype], prompt),
                image=Image.fromarray(pixels),
                strength=0.5,
                num_inference_steps=2 * steps,
                guidance_scale=1.0,
                generator=torch.Generator().manual_seed(seed),
            )
            connection.send("")
    except (EOFError, OSError):
        pass  # the parent has closed the connection
