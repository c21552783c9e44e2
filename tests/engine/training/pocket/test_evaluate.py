"""The pocket model's data, its judges, and what it paints."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import CLIPTokenizer

from engine.diffusion.stream import Stream
from engine.models import POCKET, load
from engine.shared.frame import Frame
from engine.shared.snapshot import Snapshot
from engine.training.pocket import classifier
from engine.training.pocket.captions import MOODS, WORDS, Look, caption
from engine.training.pocket.drawing import draw, look, training_picture
from engine.training.pocket.evaluate import edges, fixed_prompts, painted, psnr
from engine.training.pocket.palette import COLOURS, dominant_colour
from engine.training.pocket.patterns import FAMILIES


def test_there_are_enough_families_and_colours() -> None:
    assert len(FAMILIES) >= 14
    assert len(COLOURS) >= 14
    assert set(WORDS) == set(FAMILIES)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_is_drawn_repeatably_and_differs_by_seed(family: str) -> None:
    chosen = Look(family, ("red", "cyan"))
    first, again, other = (draw(chosen, np.random.default_rng(seed), 64) for seed in (1, 1, 2))
    assert first.shape == (64, 64, 3)
    assert first.dtype == np.float32
    assert 0.0 <= first.min() <= first.max() <= 1.0
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_the_named_colour_dominates_what_is_drawn() -> None:
    right = []
    for i, colour in enumerate(list(COLOURS) * 16):
        family = list(FAMILIES)[i // len(COLOURS)]
        picture = draw(Look(family, (colour,)), np.random.default_rng(i), 64)
        right.append(dominant_colour(np.round(picture * 255).astype(np.uint8)) == colour)
    assert np.mean(right) > 0.95


def test_the_classifier_knows_drawn_pictures_it_has_not_seen() -> None:
    judge, right = classifier.load(), []
    for i in range(160):
        rng = np.random.default_rng((987_654, i))
        chosen = look(rng)
        right.append(classifier.family(judge, np.round(draw(chosen, rng, 128) * 255).astype(np.uint8)) == chosen.family)
    assert np.mean(right) > 0.93


def test_captions_are_varied_and_name_what_is_drawn() -> None:
    rng = np.random.default_rng(0)
    chosen = Look("tunnel", ("red",), "dark")
    texts = {caption(chosen, rng) for _ in range(300)}
    assert len(texts) > 80
    assert "" in texts
    named = [t for t in texts if any(word in t for word in WORDS["tunnel"])]
    assert len(named) > 0.8 * len(texts)
    assert any(word in t for t in texts for word in MOODS["dark"])


def test_any_text_can_be_tokenized() -> None:
    tokenizer = CLIPTokenizer.from_pretrained(POCKET / "tokenizer")
    for text in ("neon tunnel", "größer 🌲 日本", "", "x" * 2000):
        ids = tokenizer(text, padding="max_length", truncation=True, max_length=32).input_ids
        assert len(ids) == 32
        assert ids[0] == tokenizer.bos_token_id
        assert max(ids) < len(tokenizer)
    plain = tokenizer("größer 🌲").input_ids
    assert "größer" in tokenizer.decode(plain, skip_special_tokens=True)


def test_the_autoencoder_reconstructs_what_it_has_not_seen() -> None:
    pictures = [
        np.round(training_picture(np.random.default_rng((55, i)), 256) * 255).astype(np.uint8) for i in range(6)
    ]
    assert psnr(load("pocket", torch.device("cpu"), torch.float32), pictures) > 20.0


def test_the_named_colour_dominates_what_is_painted() -> None:
    model = load("pocket", torch.device("cpu"), torch.float32)
    prompts = fixed_prompts()[:40]
    pictures = painted(model, prompts, 2)
    assert (
        np.mean([dominant_colour(picture) == prompt.colour for picture, prompt in zip(pictures, prompts, strict=True)])
        >= 0.85
    )


def test_the_family_named_is_recognised_in_what_is_painted() -> None:
    model, judge = load("pocket", torch.device("cpu"), torch.float32), classifier.load()
    prompts = fixed_prompts()[:48]
    pictures = painted(model, prompts, 2)
    assert (
        np.mean(
            [
                classifier.family(judge, picture) == prompt.family
                for picture, prompt in zip(pictures, prompts, strict=True)
            ]
        )
        >= 0.75
    )


def test_the_layout_of_the_input_stays_at_half_the_strength() -> None:
    model = load("pocket", torch.device("cpu"), torch.float32)
    stream = Stream(model, 256, 256)
    stream.apply(Snapshot({"/prompt": "blue ink", "/strength": 0.5, "/steps": 2}), wait=True)
    pixels = np.full((256, 256, 4), 40, np.uint8)
    pixels[60:140, 30:120] = (240, 200, 90, 255)
    pixels[150:230, 150:235] = (90, 220, 240, 255)
    stream.step([Frame(pixels)])
    outputs = stream.step([])
    assert outputs
    result = edges(np.ascontiguousarray(outputs[0].pixels[..., :3])).ravel()
    own = np.corrcoef(result, edges(np.ascontiguousarray(pixels[..., :3])).ravel())[0, 1]
    turned = np.corrcoef(result, edges(np.ascontiguousarray(pixels[::-1, :, :3])).ravel())[0, 1]
    assert own > turned + 0.1
