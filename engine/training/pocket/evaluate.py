"""``python -m engine.training.pocket.evaluate``: quality figures of the pocket models.

They are: the autoencoder's reconstruction of real footage; the share of 200 fixed prompts whose colour and pattern
show, from noise and over another pattern; energy and distance against drawn pictures of these prompts; the part of the
input's layout that remains, against chance.
"""

from __future__ import annotations

import argparse
import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from engine.diffusion.stream import Stream
from engine.image.quality import BAND_NAMES, band_energies, frechet_distance
from engine.models import Model, load, pick_device
from engine.shared.clips import read_square_frames
from engine.shared.frame import Frame
from engine.shared.parameter import Value
from engine.shared.snapshot import Snapshot
from engine.training.pocket import classifier
from engine.training.pocket.captions import MOOD_WORDS, PATTERN_WORDS, PatternSpec
from engine.training.pocket.drawing import draw, random_spec
from engine.training.pocket.palette import COLOURS, dominant_colour

Picture = NDArray[np.uint8]
SIZE = 256
FRAMES_PER_CLIP = 12
TEMPLATES = (
    "{c} {p}",
    "{p} in {c}",
    "a {c} {p}",
    "{c}, {p}, vj loop",
    "neon {c} {p}",
    "abstract {p}, {c}",
    "{c} {p} on stage",
)
LAYOUT_PROMPTS = ("neon tunnel, magenta and cyan", "orange fire", "blue ink")
#: (strength, steps) at which the layout is measured.
LAYOUT_SETTINGS = ((0.5, 2), (0.3, 2), (0.4, 2), (0.6, 2), (0.5, 1), (0.5, 4))


@dataclass(frozen=True)
class Prompt:
    """A prompt of the fixed list, with the colour and the pattern that it names."""

    text: str
    colour: str
    pattern: str


def fixed_prompts(count: int = 200) -> list[Prompt]:
    """Return always the same ``count`` prompts: patterns and colours in turn, in seven wordings, with some synonyms."""
    prompts = []
    pairs = itertools.cycle(itertools.product(range(len(COLOURS)), range(len(PATTERN_WORDS))))
    for i, (c, p) in zip(range(count), pairs, strict=False):
        pattern = list(PATTERN_WORDS)[p]
        colour = list(COLOURS)[(c + p) % len(COLOURS)]
        word = PATTERN_WORDS[pattern][0 if i % 3 else (i // 3) % 2]
        prompts.append(Prompt(TEMPLATES[i % len(TEMPLATES)].format(c=colour, p=word), colour, pattern))
    return prompts


@torch.inference_mode()
def psnr(model: Model, pictures: Sequence[Picture]) -> float:
    """Return the mean peak signal-to-noise ratio of the autoencoder's reconstructions of RGB uint8 pictures, in dB."""
    values = []
    for picture in pictures:
        x = torch.from_numpy(picture).to(model.device).permute(2, 0, 1)[None].float() / 255
        error = model.decode(model.encode(x)) - x
        values.append(-10 * torch.log10(error.square().mean()).item())
    return float(np.mean(values))


def paint_prompts(model: Model, prompts: Sequence[Prompt], steps: int, eta: float = 1.0) -> list[Picture]:
    """Paint each prompt from noise, with a seed of its own, RGB uint8."""
    stream, blank = Stream(model, SIZE, SIZE, blocking=True), np.zeros((SIZE, SIZE, 4), np.uint8)
    values: dict[str, Value] = {"/mode": "text", "/steps": steps, "/eta": eta}
    return [
        _paint(stream, blank, {**values, "/prompt": prompt.text, "/seed": 1000 + i}) for i, prompt in enumerate(prompts)
    ]


def paint_over_patterns(
    model: Model, prompts: Sequence[Prompt], strength: float, steps: int, eta: float = 1.0
) -> list[Picture]:
    """Paint each prompt over a pattern that it does not name, RGB uint8."""
    stream, pictures = Stream(model, SIZE, SIZE, blocking=True), []
    for i, prompt in enumerate(prompts):
        values: dict[str, Value] = {"/prompt": prompt.text, "/strength": strength, "/steps": steps}
        values |= {"/eta": eta, "/seed": 1000 + i}
        pictures.append(_paint(stream, cv2.cvtColor(draw_mismatch(prompt, i), cv2.COLOR_RGB2RGBA), values))
    return pictures


def draw_mismatch(prompt: Prompt, seed: int) -> Picture:
    """Draw a picture with neither the pattern nor the colour that ``prompt`` names, RGB uint8."""
    rng = np.random.default_rng((SIZE, seed))
    while (spec := random_spec(rng)).pattern == prompt.pattern or prompt.colour in spec.colours:
        pass
    return np.round(draw(spec, rng, SIZE) * 255).astype(np.uint8)


def draw_prompts(prompts: Sequence[Prompt], seed: int) -> list[Picture]:
    """Draw each prompt as the training pictures are drawn, RGB uint8."""
    pictures = []
    for i, prompt in enumerate(prompts):
        mood = next((name for name in MOOD_WORDS if name in prompt.text.split()), "")
        spec = PatternSpec(prompt.pattern, (prompt.colour,), mood)
        pictures.append(np.round(draw(spec, np.random.default_rng((seed, i)), SIZE) * 255).astype(np.uint8))
    return pictures


def distance_to(pictures: Sequence[Picture], others: Sequence[Picture]) -> float:
    """Return the Fréchet distance of two sets of pictures in the classifier's last features."""
    network = classifier.load()
    return frechet_distance(*(classifier.compute_features(network, some) for some in (pictures, others)))


def print_comparison(pictures: Sequence[Picture], prompts: Sequence[Prompt]) -> None:
    """Print energies and Fréchet distance of pictures against drawn ones of the same prompts, three lines."""
    drawn = draw_prompts(prompts, 1)
    for windowed, note in ((False, ""), (True, ", under a Hann window")):
        ratios = band_energies(pictures, windowed) / band_energies(drawn, windowed)
        bands = ", ".join(f"{name} {ratio:.2g}" for name, ratio in zip(BAND_NAMES, ratios, strict=True))
        print(f"energy against drawn pictures, cycles a pixel{note}: {bands}")
    floor = distance_to(draw_prompts(prompts, 2), drawn)
    print(
        f"Fréchet distance to drawn pictures: {distance_to(pictures, drawn):.1f} (drawn ones, other seeds: {floor:.1f})"
    )


def judge(pictures: Sequence[Picture], prompts: Sequence[Prompt]) -> tuple[list[bool], list[bool]]:
    """Return whether each picture shows the colour, and the pattern, that its prompt names."""
    network = classifier.load()
    pairs = list(zip(pictures, prompts, strict=True))
    colours = [dominant_colour(picture) == prompt.colour for picture, prompt in pairs]
    patterns = [classifier.classify(network, np.ascontiguousarray(p)) == prompt.pattern for p, prompt in pairs]
    return colours, patterns


def edge_strength(picture: Picture) -> NDArray[np.float32]:
    """Return the strength of the edges, (256, 256) float32, blurred so that a shift by a pixel matters little."""
    grey = cv2.GaussianBlur(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY).astype(np.float32), (0, 0), 2)
    return cv2.GaussianBlur(np.hypot(cv2.Sobel(grey, cv2.CV_32F, 1, 0), cv2.Sobel(grey, cv2.CV_32F, 0, 1)), (0, 0), 2)


def layout_correlation(
    model: Model, pictures: Sequence[Picture], prompts: Sequence[str], strength: float, steps: int, eta: float = 1.0
) -> tuple[float, float]:
    """Return the mean edge correlation of outputs with their input, and with a frame half the list away (chance)."""
    stream = Stream(model, SIZE, SIZE, blocking=True)
    with_input, with_other = [], []
    for i, picture in enumerate(pictures):
        values: dict[str, Value] = {"/prompt": prompts[i % len(prompts)], "/strength": strength, "/steps": steps}
        values["/eta"] = eta
        output = _paint(stream, cv2.cvtColor(picture, cv2.COLOR_RGB2RGBA), values)
        edges = edge_strength(np.ascontiguousarray(output)).ravel()
        with_input.append(np.corrcoef(edges, edge_strength(picture).ravel())[0, 1])
        other = pictures[(i + len(pictures) // 2) % len(pictures)]
        with_other.append(np.corrcoef(edges, edge_strength(other).ravel())[0, 1])
    return float(np.mean(with_input)), float(np.mean(with_other))


def _paint(stream: Stream, pixels: NDArray[np.uint8], values: dict[str, Value]) -> Picture:
    """Return the output for one RGBA input, RGB uint8."""
    stream.apply(Snapshot(values))
    outputs = stream.step([Frame(pixels)])
    while not outputs:
        outputs = stream.step([])
    return outputs[0].pixels[..., :3]


def _count_misses(names: Sequence[str], expected: Sequence[str], hits: Sequence[bool]) -> str:
    """Return each name with the number of its prompts that missed it, names without misses left out."""
    misses = {n: sum(not hit for hit, name in zip(hits, expected, strict=True) if name == n) for n in names}
    return ", ".join(f"{name} {count}" for name, count in misses.items() if count)


def main() -> None:
    """Print the figures, one a line."""
    parser = argparse.ArgumentParser(description="Measure the quality of a pocket model.")
    parser.add_argument("--model", default="pocket", help="pocket, pocket-dit or a folder (default: pocket)")
    parser.add_argument("--device", default="auto", help="torch device (default: auto)")
    parser.add_argument("--dtype", default="auto", help="weights' data type (default: auto)")
    parser.add_argument("--steps", type=int, default=2, help="denoising steps per prompt (default: 2)")
    parser.add_argument("--eta", type=float, default=1.0, help="fresh noise between steps, 0 to 1 (default: 1)")
    parser.add_argument("--clips", type=Path, nargs="*", default=[], help="videos of real footage (default: none)")
    parser.add_argument("--sheet", type=Path, help="PNG for a contact sheet of the first 64 pictures (default: none)")
    options = parser.parse_args()
    if options.sheet and os.path.lexists(options.sheet):
        parser.error(f"--sheet {options.sheet} exists; choose another name")
    model = load(options.model, pick_device(options.device), options.dtype)
    clips = {path.stem: read_square_frames(path, SIZE, FRAMES_PER_CLIP, spread=True) for path in options.clips}
    for name, frames in clips.items():
        print(f"autoencoder PSNR on {name} at {SIZE}²: {psnr(model, frames):.2f} dB")
    prompts = fixed_prompts()
    pictures = paint_prompts(model, prompts, options.steps, options.eta)
    colours, patterns = judge(pictures, prompts)
    print(f"colour named dominates, {options.steps} steps: {np.mean(colours):.1%} of {len(prompts)} prompts")
    print(f"pattern recognised, {options.steps} steps: {np.mean(patterns):.1%} of {len(prompts)} prompts")
    print("patterns missed: " + _count_misses([*PATTERN_WORDS], [p.pattern for p in prompts], patterns))
    print("colours missed: " + _count_misses([*COLOURS], [p.colour for p in prompts], colours))
    print_comparison(pictures, prompts)
    for strength in (0.6, 0.8):
        hits = judge(paint_over_patterns(model, prompts, strength, options.steps, options.eta), prompts)
        colour, pattern = (np.mean(values) for values in hits)
        setting = f"over another pattern at strength {strength}, {options.steps} steps"
        print(f"{setting}: colour {colour:.1%}, pattern {pattern:.1%}")
    frames = [frame for clip in clips.values() for frame in clip]
    for strength, steps in LAYOUT_SETTINGS if frames else ():
        with_input, with_other = layout_correlation(model, frames, LAYOUT_PROMPTS, strength, steps, options.eta)
        setting = f"edge correlation at strength {strength}, steps {steps}"
        print(f"{setting}: {with_input:.2f} with the input, {with_other:.2f} with another")
    if options.sheet:
        rows = [np.concatenate(pictures[i : i + 8], 1) for i in range(0, 64, 8)]
        sheet = cv2.resize(np.concatenate(rows), (1024, 1024), interpolation=cv2.INTER_AREA)
        cv2.imwrite(str(options.sheet), cv2.cvtColor(sheet, cv2.COLOR_RGB2BGR))


if __name__ == "__main__":
    main()
