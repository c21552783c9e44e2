"""The table of ``phosphene bench``: pictures from noise, live streams, and steps at real sizes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch

from engine.bench.measure import Row
from engine.bench.model import Bench
from engine.bench.regions import from_noise, large, live
from engine.diffusion.regions import SHARES, count_active
from engine.models import Model
from engine.models.regional.base import TokenChoice
from engine.shared.frame import Pixels

#: Pictures of each way to paint, and frames of each clip.
PICTURES, FRAMES = 48, 120


def measure_regions(bench: Bench, clips: Mapping[str, Sequence[Pixels]], quick: bool) -> Iterator[Row]:
    """Yield the rows of all three parts; none for a model that computes all of its tokens.

    ``clips`` are RGBA uint8 of the bench's size. Two further ones are made of the first.
    """
    model = bench.model
    if model.architecture.regional_transformer is None:
        return
    bench.open_stream(steps=1).close()  # compiles the dense calls
    if bench.accelerator.enabled:
        compile_parts(model, bench.side, lambda: bench.accelerator.compile_all(lambda: model.compiled_modules))
    yield from from_noise.measure(model, bench.side, 2 if quick else PICTURES, quick)
    yield from live.measure(model, bench.side, extend_clips(clips, quick), (2,) if quick else (1, 2, 4), quick)
    yield from large.measure(bench.device, bench.dtype, (64,) if quick else (512, 1024), quick)


def extend_clips(clips: Mapping[str, Sequence[Pixels]], quick: bool) -> dict[str, Sequence[Pixels]]:
    """Return the clips, shortened, with one that stops and goes and one whose background stands still."""
    shortened = {name: pictures[: 40 if quick else FRAMES] for name, pictures in clips.items()}
    name, pictures = next(iter(shortened.items()))
    return shortened | {
        f"{name}, stop and go": live.stop_and_go(pictures, 10 if quick else live.FRAME_RATE),
        f"{name}, still background": live.still_background(pictures),
    }


@torch.inference_mode()
def compile_parts(model: Model, side: int, compile_requested: Callable[[], None]) -> None:
    """Make each call of the regional transformer once, and compile it: all tokens, and each share of them."""
    x = torch.randn(1, *model.latent_shape(side, side), device=model.device)
    t, condition, tokens = (
        torch.full((1,), 500.0, device=model.device),
        model.encode_prompt(""),
        model.token_count(side, side),
    )
    _, cache = model.denoise_tokens(x, t, condition, 0.0, TokenChoice())
    compile_requested()
    for share in SHARES[1:]:
        active = torch.arange(count_active(tokens, share), device=model.device)[None, None, None]
        for with_text in (True, False):
            model.denoise_tokens(x, t, condition, 0.0, TokenChoice(active, cache, with_text))
            compile_requested()
