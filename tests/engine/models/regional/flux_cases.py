"""Small FLUX denoisers with random weights, and what their regional counterparts are compared with.

Attention must depend on places and on other tokens, or a mistake there would not show: so keys are as large as queries.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from diffusers import Flux2Transformer2DModel, FluxTransformer2DModel
from torch import Tensor, nn

from engine.models.architectures import Architecture, Condition
from engine.models.architectures.flux import Flux, Flux2
from engine.models.regional.base import TokenChoice

CPU = torch.device("cpu")
#: Length of a prompt in tokens: no number of rows or of picture tokens, which would make it batched.
TEXT = 7
GUIDANCE = 2.5
SETTINGS: dict[str, Any] = {
    "num_layers": 2, "num_single_layers": 2, "attention_head_dim": 16, "num_attention_heads": 2,
    "joint_attention_dim": 40,
}  # fmt: skip


def make_flux(is_guided: bool = True, dtype: torch.dtype = torch.float32) -> Flux:
    """Build FLUX.1 with 4 latent channels: dev, or schnell, which has no guidance embedding."""
    torch.manual_seed(1)
    denoiser = FluxTransformer2DModel(
        in_channels=16, pooled_projection_dim=24, guidance_embeds=is_guided, axes_dims_rope=(4, 6, 6), **SETTINGS
    )
    return Flux({"transformer": _randomize(denoiser, dtype)}, CPU, dtype)


def make_flux2(is_guided: bool = True, dtype: torch.dtype = torch.float32) -> Flux2:
    """Build FLUX.2 with 8 latent channels; klein has no guidance embedding."""
    torch.manual_seed(2)
    denoiser = Flux2Transformer2DModel(
        in_channels=8, guidance_embeds=is_guided, axes_dims_rope=(4, 4, 4, 4), **SETTINGS
    )
    return Flux2({"transformer": _randomize(denoiser, dtype)}, CPU, dtype)


def _randomize(denoiser: nn.Module, dtype: torch.dtype) -> nn.Module:
    for parameter in denoiser.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
        else:
            nn.init.uniform_(parameter, 0.5, 1.5)
    return denoiser.to(dtype).requires_grad_(False).eval()


class Inputs:
    """The inputs of one tick: random latents, timesteps and texts, different in each row."""

    def __init__(self, architecture: Architecture, rows: int, height: int, width: int, seed: int = 0) -> None:
        torch.manual_seed(seed)
        config, dtype = architecture.denoiser.config, architecture.dtype
        channels = config["in_channels"] // architecture.patch**2
        self.architecture = architecture
        self.x = torch.randn(rows, channels, height, width).to(dtype, memory_format=torch.channels_last)
        self.t = torch.linspace(900, 100 + 90 * seed, rows).to(dtype)
        pooled = torch.randn(rows, config["pooled_projection_dim"]) if "pooled_projection_dim" in config else None
        text = Condition(torch.randn(rows, TEXT, config["joint_attention_dim"]), pooled)
        self.condition = text.map(lambda tensor: tensor.to(dtype))
        self.tokens = (height // architecture.patch) * (width // architecture.patch)

    @torch.inference_mode()
    def run_dense(self) -> Tensor:
        """Return the outputs of the whole denoiser as tokens, (rows, N, C · patch²)."""
        output = self.architecture.denoise(self.x, self.t, self.condition, GUIDANCE)
        side = self.architecture.patch
        patches = output.unflatten(3, (-1, side)).unflatten(2, (-1, side))  # (rows, C, h / p, p, w / p, p)
        return patches.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)

    @torch.inference_mode()
    def run_tokens(self, choice: TokenChoice | None = None) -> tuple[Tensor, Tensor]:
        """Return the outputs of some tokens, or of all, and their keys and values."""
        return self.architecture.denoise_tokens(self.x, self.t, self.condition, GUIDANCE, choice or TokenChoice())

    def draw(self, count: int, seed: int = 0) -> Tensor:
        """Return other tokens in each row, in no order, (rows, 1, 1, count)."""
        generator = torch.Generator().manual_seed(seed)
        chosen = [torch.randperm(self.tokens, generator=generator)[:count] for _ in self.x]
        return torch.stack(chosen)[:, None, None]


def pick(tokens: Tensor, active: Tensor) -> Tensor:
    """Return the active ones of all tokens, row by row."""
    return torch.stack([row[chosen.flatten()] for row, chosen in zip(tokens, active, strict=True)])


def store(cache: Tensor, computed: Tensor, active: Tensor, with_text: bool) -> None:
    """Overwrite what was computed in ``cache``, row by row."""
    for row, chosen in enumerate(active.flatten(1)):
        places = [*(range(TEXT) if with_text else ()), *(TEXT + int(token) for token in chosen)]
        assert computed.shape[3] == len(places)
        for i, place in enumerate(places):
            cache[row, :, :, place] = computed[row, :, :, i]


class RefusedKeys:
    """The attention of diffusers' own forward, which computes all tokens but refuses new keys and values of some.

    ``refused``, (rows, text + N), marks them; it takes those that were last attended to, ``recorded`` by layer.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, denoiser: nn.Module) -> None:
        module = importlib.import_module(type(denoiser).__module__)
        self._attend = module.dispatch_attention_fn
        self.refused: Tensor | None = None
        self.recorded: list[tuple[Tensor, Tensor]] = []
        self._layer = 0
        monkeypatch.setattr(module, "dispatch_attention_fn", self)

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
        if self.refused is None:
            self.recorded.append((key, value))
        else:
            refused, (old_key, old_value) = self.refused[:, :, None, None], self.recorded[self._layer]
            key, value = torch.where(refused, old_key, key), torch.where(refused, old_value, value)
            self.recorded[self._layer] = key, value
        self._layer += 1
        return self._attend(query, key, value, **options)

    def run(self, inputs: Inputs, active: Tensor | None = None, with_text: bool = True) -> Tensor:
        """Return all outputs of a forward that refuses the keys of tokens that are not active."""
        self._layer, self.refused = 0, None
        if active is None:
            self.recorded.clear()
        else:
            self.refused = torch.ones(len(inputs.x), TEXT + inputs.tokens, dtype=torch.bool)
            self.refused[:, :TEXT] = not with_text
            for row, chosen in enumerate(active.flatten(1)):
                self.refused[row, TEXT + chosen] = False
        return inputs.run_dense()

    @property
    def cache(self) -> Tensor:
        """The keys and values that were last attended to, (rows, layers, 2, text + N, width)."""
        return torch.stack([torch.stack([key.flatten(2), value.flatten(2)], 1) for key, value in self.recorded], 1)


def check_all_tokens(inputs: Inputs) -> None:
    """Assert that the call for all tokens equals the denoiser."""
    expected, (actual, computed) = inputs.run_dense(), inputs.run_tokens()
    assert computed.shape == (len(inputs.x), 4, 2, TEXT + inputs.tokens, 32)
    assert expected.std() > 0.1
    assert torch.allclose(actual, expected, atol=1e-5, rtol=1e-5)


def check_unchanged_inputs(inputs: Inputs, count: int, with_text: bool) -> None:
    """Assert that active tokens whose cache comes from the same inputs equal the denoiser's."""
    everything, cache = inputs.run_tokens()
    active = inputs.draw(count)
    actual, computed = inputs.run_tokens(TokenChoice(active, cache, with_text))
    assert actual.shape == (len(inputs.x), count, everything.shape[2])
    assert torch.allclose(actual, pick(inputs.run_dense(), active), atol=1e-5, rtol=1e-5)
    again = cache.clone()
    store(again, computed, active, with_text)
    assert torch.allclose(again, cache, atol=1e-5, rtol=1e-5)


def check_half_precision(inputs: Inputs) -> None:
    """Assert that calls in a 16-bit type equal the denoiser's to about its rounding, bfloat16's being 2⁻⁸."""
    dense, (everything, cache) = inputs.run_dense(), inputs.run_tokens()
    active = inputs.draw(3)
    some, computed = inputs.run_tokens(TokenChoice(active, cache))
    assert some.dtype == everything.dtype == computed.dtype == cache.dtype == inputs.architecture.dtype
    for actual, expected in ((everything, dense), (some, pick(dense, active))):
        assert (actual - expected).abs().mean() < 0.01 * expected.std()


def check_stale_cache(monkeypatch: pytest.MonkeyPatch, ticks: Sequence[Inputs], texts: Sequence[bool]) -> None:
    """Assert over several ticks that skipped tokens are attended to as they were when they were last computed."""
    first, *later = ticks
    dense = [inputs.run_dense() for inputs in ticks]
    reference = RefusedKeys(monkeypatch, first.architecture.denoiser)
    reference.run(first)
    cache = first.run_tokens()[1].clone()
    for number, (inputs, with_text) in enumerate(zip(later, texts, strict=True), 1):
        active = inputs.draw(inputs.tokens // 3, number)
        expected = pick(reference.run(inputs, active, with_text), active)
        actual, computed = inputs.run_tokens(TokenChoice(active, cache, with_text))
        assert (expected - pick(dense[number], active)).abs().mean() > 0.01
        assert (actual - expected).abs().max() < 1e-4
        store(cache, computed, active, with_text)
        assert (cache - reference.cache).abs().max() < 1e-4


def check_changed_weights(inputs: Inputs) -> None:
    """Assert that a change of any layer's weights, as LoRAs make it, acts on the call for some tokens."""
    _, cache = inputs.run_tokens()
    choice = TokenChoice(inputs.draw(4), cache)
    before = inputs.run_tokens(choice)[0]
    layers = {n: one for n, one in inputs.architecture.denoiser.named_modules() if isinstance(one, nn.Linear)}
    for name, layer in layers.items():
        original = layer.weight.clone()
        torch.manual_seed(0)
        layer.weight += 0.1 * torch.randn(len(original), 1) @ torch.randn(1, original.shape[1])
        assert (inputs.run_tokens(choice)[0] - before).abs().max() > 1e-4, name
        layer.weight.copy_(original)
    assert torch.equal(inputs.run_tokens(choice)[0], before)


def check_left_out_text(inputs: Inputs, text_layers: Sequence[str]) -> None:
    """Assert that a call with text runs every layer of the denoiser, and one without it all but its text layers."""
    _, cache = inputs.run_tokens()
    called: set[str] = set()
    layers = {n: one for n, one in inputs.architecture.denoiser.named_modules() if isinstance(one, nn.Linear)}
    handles = [one.register_forward_hook(lambda *_, name=name: called.add(name)) for name, one in layers.items()]
    for with_text in (True, False):
        called.clear()
        inputs.run_tokens(TokenChoice(inputs.draw(4), cache, with_text))
        left_out = {name for name in layers if any(part in name for part in text_layers)}
        assert left_out
        assert called == (set(layers) if with_text else set(layers) - left_out)
    for handle in handles:
        handle.remove()
