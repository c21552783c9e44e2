"""The pocket model's drawings and captions, the classifiers that judge it, and its pictures."""

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
from engine.training.pocket.captions import MOOD_WORDS, PATTERN_WORDS, PatternSpec, write_caption
from engine.training.pocket.drawing import draw, draw_training_picture, random_spec
from engine.training.pocket.evaluate import (
    distance_to,
    draw_prompts,
    edge_strength,
    fixed_prompts,
    judge,
    paint_prompts,
    print_comparison,
    psnr,
)
from engine.training.pocket.palette import COLOURS, dominant_colour
from engine.training.pocket.patterns import PATTERNS


def test_there_are_enough_patterns_and_colours() -> None:
    assert len(PATTERNS) >= 14
    assert len(COLOURS) >= 14
    assert set(PATTERN_WORDS) == set(PATTERNS)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_pattern_is_drawn_repeatably_and_differs_by_seed(pattern: str) -> None:
    spec = PatternSpec(pattern, ("red", "cyan"))
    first, again, other = (draw(spec, np.random.default_rng(seed), 64) for seed in (1, 1, 2))
    assert first.shape == (64, 64, 3)
    assert first.dtype == np.float32
    assert 0.0 <= first.min() <= first.max() <= 1.0
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_the_named_colour_dominates_a_drawing() -> None:
    hits = []
    for i, colour in enumerate(list(COLOURS) * 16):
        pattern = list(PATTERNS)[i // len(COLOURS)]
        picture = draw(PatternSpec(pattern, (colour,)), np.random.default_rng(i), 64)
        hits.append(dominant_colour(np.round(picture * 255).astype(np.uint8)) == colour)
    assert np.mean(hits) > 0.95


def test_the_classifier_names_held_out_drawings() -> None:
    network, hits = classifier.load(), []
    for i in range(160):
        rng = np.random.default_rng((987_654, i))
        spec = random_spec(rng)
        picture = np.round(draw(spec, rng, 128) * 255).astype(np.uint8)
        hits.append(classifier.classify(network, picture) == spec.pattern)
    assert np.mean(hits) > 0.93


def test_the_last_layer_scores_the_features() -> None:
    network, pictures = classifier.load(), draw_prompts(fixed_prompts(3), 1)
    features = torch.from_numpy(classifier.compute_features(network, pictures))
    assert features.shape == (3, 384)
    names = [classifier.NAMES[int(scores.argmax())] for scores in network[-1](features)]
    assert names == [classifier.classify(network, picture) for picture in pictures]


def test_drawn_prompts_show_what_they_name_and_differ_by_seed(capsys: pytest.CaptureFixture[str]) -> None:
    prompts = fixed_prompts(20)
    drawn, others = draw_prompts(prompts, 1), draw_prompts(prompts, 2)
    colours, patterns = judge(drawn, prompts)
    assert min(np.mean(colours), np.mean(patterns)) > 0.9
    assert not any(np.array_equal(one, other) for one, other in zip(drawn, others, strict=True))
    unrelated = [np.full((256, 256, 3), 40 * (i % 6), np.uint8) for i in range(20)]
    assert distance_to(drawn, drawn) < 1e-3 < distance_to(others, drawn) < distance_to(unrelated, drawn)
    print_comparison(drawn, prompts)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("1/64–1/16 1, 1/16–1/8 1, 1/8–1/4 1, 1/4– 1")
    assert "distance to drawn pictures: 0.0 (drawn ones, other seeds: " in lines[2]


def test_captions_are_varied_and_name_the_pattern() -> None:
    rng = np.random.default_rng(0)
    spec = PatternSpec("tunnel", ("red",), "dark")
    texts = {write_caption(spec, rng) for _ in range(300)}
    assert len(texts) > 80
    assert "" in texts
    named = [t for t in texts if any(word in t for word in PATTERN_WORDS["tunnel"])]
    assert len(named) > 0.8 * len(texts)
    assert any(word in t for t in texts for word in MOOD_WORDS["dark"])


def test_any_text_can_be_tokenized() -> None:
    tokenizer = CLIPTokenizer.from_pretrained(POCKET / "tokenizer")
    for text in ("neon tunnel", "größer 🌲 日本", "", "x" * 2000):
        ids = tokenizer(text, padding="max_length", truncation=True, max_length=32).input_ids
        assert len(ids) == 32
        assert ids[0] == tokenizer.bos_token_id
        assert max(ids) < len(tokenizer)
    plain = tokenizer("größer 🌲").input_ids
    assert "größer" in tokenizer.decode(plain, skip_special_tokens=True)


def test_the_autoencoder_reconstructs_held_out_drawings() -> None:
    pictures = [
        np.round(draw_training_picture(np.random.default_rng((55, i)), 256) * 255).astype(np.uint8) for i in range(6)
    ]
    assert psnr(load("pocket", torch.device("cpu"), torch.float32), pictures) > 20.0


def test_painted_pictures_show_the_named_colour_and_pattern() -> None:
    model = load("pocket", torch.device("cpu"), torch.float32)
    prompts = fixed_prompts()[:48]
    colours, patterns = judge(paint_prompts(model, prompts, 2), prompts)
    assert np.mean(colours[:40]) >= 0.85
    assert np.mean(patterns) >= 0.75


def test_the_layout_of_the_input_remains_at_half_strength() -> None:
    model = load("pocket", torch.device("cpu"), torch.float32)
    stream = Stream(model, 256, 256)
    stream.apply(Snapshot({"/prompt": "blue ink", "/strength": 0.5, "/steps": 2}))
    stream.settle()
    pixels = np.full((256, 256, 4), 40, np.uint8)
    pixels[60:140, 30:120] = (240, 200, 90, 255)
    pixels[150:230, 150:235] = (90, 220, 240, 255)
    stream.step([Frame(pixels)])
    outputs = stream.step([])
    assert outputs
    edges = edge_strength(np.ascontiguousarray(outputs[0].pixels[..., :3])).ravel()
    upright, flipped = (
        np.corrcoef(edges, edge_strength(np.ascontiguousarray(picture[..., :3])).ravel())[0, 1]
        for picture in (pixels, pixels[::-1])
    )
    assert upright > flipped + 0.1
