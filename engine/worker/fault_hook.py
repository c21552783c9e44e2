"""An effect that makes the engine fail as models and devices do: for rehearsals, whose folder of effects it is copied into.

It is read before the model is made, and stands in for its decoder from then on.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from engine.models.autoencoders import Codec

PARAMETERS = {"kind": (0, 0, 3, "1 gives NaN, 2 is out of memory, 3 loses the device")}
kind, decode = 0, Codec.decode


def poisoned(self: Codec, latents: Tensor) -> Tensor:
    """Decodes, or fails."""
    if kind == 1:
        return decode(self, latents) * float("nan")
    if kind == 2:
        raise torch.OutOfMemoryError("out of memory: 2.00 GiB were to be allocated")
    if kind == 3:
        raise RuntimeError("CUDA error: unspecified launch failure")
    return decode(self, latents)


def latent(latents: Tensor, values: Mapping[str, float], _seconds: float) -> Tensor:
    """Takes the kind from the effect's parameter; the latents stay."""
    global kind
    kind = int(values["kind"])
    return latents


Codec.decode = poisoned  # type: ignore[method-assign]
