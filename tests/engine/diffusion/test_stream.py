"""The stream batch against an independent loop: each frame denoised alone, by the papers' formulas."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from engine.diffusion.slots import Slot
from engine.diffusion.stream import Stream
from engine.models import Model, load
from engine.runtime.cuda_streams import PendingOutput
from engine.shared.frame import Frame
from engine.shared.parameter import InvalidValue
from engine.shared.snapshot import Snapshot
from tests.engine.checkpoints import save_sd

SIZE = 64
PROMPT, NEGATIVE = "green spiral", "red stripes"
LEFT, RIGHT = np.s_[:, : SIZE // 2], np.s_[:, SIZE // 2 :]


def pictures(count: int) -> list[Frame]:
    rng = np.random.default_rng(5)
    return [Frame(rng.integers(0, 256, (SIZE, SIZE, 4), dtype=np.uint8), i) for i in range(count)]


class RecordingStream(Stream):
    """A stream that records the clean latents that it decodes, by frame."""

    latents: dict[int, torch.Tensor]

    def _decode(self, finished: list[tuple[Slot, torch.Tensor]]) -> PendingOutput:
        for slot, latent in finished:
            for frame, frame_latent in zip(slot.frames, latent, strict=True):
                self.latents[frame.sequence] = frame_latent.clone()
        return super()._decode(finished)


@pytest.fixture(scope="module")
def pocket() -> Model:
    return load("pocket", torch.device("cpu"), torch.float32)


@pytest.fixture(scope="module")
def epsilon(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return load(str(save_sd(tmp_path_factory.mktemp("sd"))), torch.device("cpu"), torch.float32)


def run(
    model: Model, frames: list[Frame], **values: object
) -> tuple[dict[int, torch.Tensor], list[int], list[list[Frame]]]:
    """Return the latents by frame, the rows of each full tick, and the outputs of each tick."""
    snapshot = Snapshot({"/prompt": PROMPT, "/negative": NEGATIVE, **values})  # type: ignore[dict-item]
    stream = RecordingStream(model, SIZE, SIZE)
    stream.latents = {}
    stream.apply(snapshot)
    stream.settle()
    size, rows, outputs = snapshot.whole("/buffer"), [], []
    for start in range(0, len(frames), size):
        outputs.append(stream.step(frames[start : start + size]) or [])
        rows.append(stream.stats.rows)
    while stream.slots:
        outputs.append(stream.step([]) or [])
    return stream.latents, rows, outputs


@torch.inference_mode()
def denoise_alone(
    model: Model, frame: Frame, timesteps: list[int], mode: str, gamma: float, delta: float, seed: int
) -> torch.Tensor:
    """Return one frame's latent after n sequential denoiser calls, on noise predictions in float64 as in the papers."""
    unet, vae = model.denoiser, model.autoencoder
    alphas = model.noise_schedule.alphas
    assert alphas is not None
    lcm = model.noise_schedule.consistency
    v_model = model.noise_schedule.prediction == "v"
    positive, negative = (model.encode_prompt(text).tokens for text in (PROMPT, NEGATIVE))
    image = torch.from_numpy(frame.pixels[..., :3]).permute(2, 0, 1)[None].float() / 127.5 - 1
    encoded = vae.encode(image)
    z = (encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.mean) * (
        vae.config.scaling_factor or 1.0
    )
    noises = torch.randn((len(timesteps), *z.shape[1:]), generator=torch.Generator().manual_seed(seed)).double()
    z = z.double()

    def eps(x: torch.Tensor, t: int, tokens: torch.Tensor) -> torch.Tensor:
        out = unet(x.float(), torch.tensor([t]), encoder_hidden_states=tokens).sample.double()
        alpha = alphas[t]
        return alpha.sqrt() * out + (1 - alpha).sqrt() * x if v_model else out

    x, x0_negative, D = z, None, z
    for i, t in enumerate(timesteps):
        alpha = alphas[t]
        x = alpha.sqrt() * (z if i == 0 else D) + (1 - alpha).sqrt() * noises[i]
        noise = eps(x, t, positive)
        if mode == "full":
            other = eps(x, t, negative)
            noise = other + gamma * (noise - other)
        elif mode == "onetime" and i == 0:
            x0_negative = (x - (1 - alpha).sqrt() * eps(x, t, negative)) / alpha.sqrt()
        if mode in ("self", "onetime"):
            reference = z if mode == "self" else x0_negative
            assert reference is not None
            residual = (x - alpha.sqrt() * reference) / (1 - alpha).sqrt()
            noise = delta * residual + gamma * (noise - delta * residual)
        F = (x - (1 - alpha).sqrt() * noise) / alpha.sqrt()
        scaled = 10.0 * t
        c_skip, c_out = (0.25 / (scaled**2 + 0.25), scaled / math.sqrt(scaled**2 + 0.25)) if lcm else (0.0, 1.0)
        D = c_out * F + c_skip * x
    return D[0]


@pytest.mark.parametrize("mode", ["none", "full", "self", "onetime"])
@pytest.mark.parametrize("buffer", [1, 2])
@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_batch_equals_sequential(pocket: Model, n: int, buffer: int, mode: str) -> None:
    frames = pictures(6)
    values = {"/guidance/mode": mode, "/guidance": 1.6, "/guidance/delta": 0.9, "/seed": 7}
    latents, _, outputs = run(pocket, frames, **{"/steps": n, "/strength": 0.7, "/buffer": buffer}, **values)
    timesteps = [round(700 - 1 - 700 * i // n) for i in range(n)]
    assert [f.sequence for tick in outputs for f in tick] == [f.sequence for f in frames]
    assert all(not tick for tick in outputs[: n - 1]), "no frame is finished before the batch is full"
    for frame in frames:
        expected = denoise_alone(pocket, frame, timesteps, mode, 1.6, 0.9, 7)
        assert (latents[frame.sequence] - expected).abs().max() < 1e-4


@pytest.mark.parametrize("mode", ["none", "full", "self", "onetime"])
def test_an_epsilon_model_with_an_explicit_schedule(epsilon: Model, mode: str) -> None:
    frames = pictures(4)
    values = {"/schedule": "601 402 33", "/guidance/mode": mode, "/guidance": 2.0, "/guidance/delta": 1.0, "/seed": 11}
    latents, _, _ = run(epsilon, frames, **values)
    for frame in frames:
        expected = denoise_alone(epsilon, frame, [601, 402, 33], mode, 2.0, 1.0, 11)
        assert (latents[frame.sequence] - expected).abs().max() < 1e-4


ROWS: dict[str, Callable[[int], int]] = {
    "none": lambda n: n,
    "self": lambda n: n,
    "onetime": lambda n: n + 1,
    "full": lambda n: 2 * n,
}


@pytest.mark.parametrize("mode", ROWS)
@pytest.mark.parametrize("buffer", [1, 2])
@pytest.mark.parametrize("n", [1, 2, 4])
def test_rows_per_tick(pocket: Model, n: int, buffer: int, mode: str) -> None:
    calls: list[int] = []
    original = pocket.denoiser.forward

    def count_rows(x: torch.Tensor, *args: object, **kwargs: object) -> object:
        calls.append(len(x))
        return original(x, *args, **kwargs)

    pocket.denoiser.forward = count_rows
    try:
        _, rows, _ = run(
            pocket,
            pictures(buffer * (n + 2)),
            **{"/steps": n, "/buffer": buffer, "/guidance/mode": mode, "/guidance": 1.5},
        )
    finally:
        pocket.denoiser.forward = original
    assert rows[n - 1 :] == [ROWS[mode](n) * buffer] * 3
    assert ROWS[mode](n) * buffer in calls
    assert max(calls) == ROWS[mode](n) * buffer


def test_strength_changes_without_losing_frames(pocket: Model) -> None:
    stream = Stream(pocket, SIZE, SIZE)
    seen: list[int] = []
    for k, frame in enumerate(pictures(12)):
        stream.apply(Snapshot({"/steps": 3, "/strength": 0.3 + 0.05 * k}, k))
        stream.settle()
        finished = stream.step([frame])
        assert finished is not None
        assert len(finished) == (k >= 2)
        seen += [f.sequence for f in finished]
    assert seen == list(range(10))


@pytest.mark.parametrize(("before", "after"), [(1, 4), (4, 1), (2, 3), (3, 2)])
def test_a_new_number_of_steps_takes_effect_within_n_ticks(pocket: Model, before: int, after: int) -> None:
    stream = Stream(pocket, SIZE, SIZE)
    frames = pictures(20)
    stream.apply(Snapshot({"/steps": before}))
    stream.settle()
    seen = [f.sequence for frame in frames[:8] for f in stream.step([frame]) or []]
    stream.apply(Snapshot({"/steps": after}))
    stream.settle()
    for k, frame in enumerate(frames[8:]):
        finished = stream.step([frame]) or []
        seen += [f.sequence for f in finished]
        if k >= after - 1:
            assert finished[-1].sequence == frame.sequence - after + 1
    assert seen == sorted(seen), "the picture never goes back in time"
    assert stream.stats.superseded == max(0, before - after - 1), (
        "only frames that a newer one has overtaken are dropped"
    )


def test_a_schedule_that_does_not_suit_the_model_does_not_delay_other_changes(pocket: Model) -> None:
    stream = Stream(pocket, SIZE, SIZE)
    with pytest.raises(InvalidValue, match="1000"):
        stream.apply(Snapshot({"/schedule": "1000 500 10", "/guidance": 3.0}, 5))
    assert stream.snapshot.diffusion.guidance.scale == 3.0
    assert len(stream.plan.steps) == 2
    outputs = stream.step(pictures(1)) or stream.step([])
    assert outputs
    assert outputs[0].snapshot == 5


def test_text_mode_ignores_the_picture(pocket: Model) -> None:
    first, _, _ = run(pocket, pictures(2), **{"/mode": "text", "/steps": 2})
    assert torch.allclose(first[0], first[1], atol=1e-5)


def test_prompts_weights_and_seeds_change_the_picture(pocket: Model) -> None:
    frames = pictures(1)
    base = run(pocket, frames)[0][0]
    for change in (
        {"/prompt": "red fire"},
        {"/seed": 9},
        {"/prompt/2": "red fire", "/prompt/2/weight": 0.5},
        {"/seed/mix": 0.5},
    ):
        other = run(pocket, frames, **change)[0][0]
        assert (other - base).abs().mean() > 1e-3
    assert torch.equal(run(pocket, frames)[0][0], base)


def test_a_frame_of_another_size_is_resized(pocket: Model) -> None:
    stream = Stream(pocket, SIZE, SIZE)
    out = stream.step([Frame(np.zeros((40, 100, 4), np.uint8))]) or stream.step([])
    assert out is not None
    assert out[0].pixels.shape == (SIZE, SIZE, 4)
    assert (out[0].pixels[..., 3] == 255).all()


def test_a_still_picture_is_skipped_and_a_change_is_not(pocket: Model) -> None:
    stream = Stream(pocket, SIZE, SIZE)
    still, other = pictures(2)
    snapshot = Snapshot({"/similarity": True, "/similarity/max_skip": 10, "/steps": 2})
    stream.apply(snapshot)
    stream.settle()
    results = [stream.step([still]) for _ in range(60)]
    assert sum(r is None for r in results) >= 50
    assert stream.step([other]) is not None
    stream.apply(Snapshot({"/similarity": True, "/steps": 2, "/prompt": "fire"}))
    stream.settle()
    assert stream.step([other]) is not None, "a change of parameters is never skipped"


def test_the_inputs_alpha_masks_the_diffusion(pocket: Model) -> None:
    frame = pictures(1)[0]
    frame.pixels[..., 3] = 0
    frame.pixels[:, SIZE // 2 :, 3] = 255
    stream = Stream(pocket, SIZE, SIZE)
    stream.apply(Snapshot({"/mask": "alpha", "/steps": 1, "/prompt": PROMPT}))
    stream.settle()
    (out,) = stream.step([frame]) or []
    left, right = (
        np.abs(out.pixels[side][..., :3].astype(int) - frame.pixels[side][..., :3]).mean() for side in (LEFT, RIGHT)
    )
    assert left == 0, "transparent: the input"
    assert right > 20, "opaque: diffused"
