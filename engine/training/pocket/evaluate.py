"""``python -m engine.training.pocket.evaluate``: how good the pocket model is, in figures.

Reconstruction of real footage by the autoencoder; how many of 200 fixed prompts show their colour and their family
after 2 steps, from noise and over another pattern; and how much of the input's layout an image-to-image pass at strength 0.5
keeps, against chance.
"""

from __future__ import annotations

import argparse
import itertools
from dataclasses import dataclass
from pathlib import Path

import av
import cv2
import numpy as np
import torch

from engine.diffusion.stream import Stream
from engine.models import Model, load, pick_device, pick_dtype
from engine.shared.frame import Frame
from engine.shared.snapshot import Snapshot
from engine.training.pocket import classifier
from engine.training.pocket.captions import WORDS
from engine.training.pocket.drawing import draw, look
from engine.training.pocket.palette import COLOURS, dominant_colour

SIZE = 256
TEMPLATES = (
    "{c} {f}",
    "{f} in {c}",
    "a {c} {f}",
    "{c}, {f}, vj loop",
    "neon {c} {f}",
    "abstract {f}, {c}",
    "{c} {f} on stage",
)


@dataclass(frozen=True)
class Prompt:
    """A prompt of the fixed list, with what it names."""

    text: str
    colour: str
    family: str


def fixed_prompts(count: int = 200) -> list[Prompt]:
    """Always the same ``count`` prompts: families and colours in turn, in seven wordings, the family's own name or a synonym."""
    prompts = []
    pairs = itertools.cycle(itertools.product(range(len(COLOURS)), range(len(WORDS))))
    for i, (c, f) in zip(range(count), pairs, strict=False):
        family = list(WORDS)[f]
        colour = list(COLOURS)[(c + f) % len(COLOURS)]
        word = WORDS[family][0 if i % 3 else (i // 3) % 2]
        prompts.append(Prompt(TEMPLATES[i % len(TEMPLATES)].format(c=colour, f=word), colour, family))
    return prompts


def clip(path: Path, count: int = 12) -> list[np.ndarray]:
    """``count`` frames spread over a clip, the middle square at 256², RGB uint8."""
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    chosen = []
    for i in np.linspace(0, len(frames) - 1, count).astype(int):
        height, width = frames[i].shape[:2]
        side = min(height, width)
        y, x = (height - side) // 2, (width - side) // 2
        chosen.append(cv2.resize(frames[i][y : y + side, x : x + side], (SIZE, SIZE), interpolation=cv2.INTER_AREA))
    return chosen


@torch.inference_mode()
def psnr(model: Model, pictures: list[np.ndarray]) -> float:
    """Mean peak signal-to-noise ratio of the autoencoder's reconstructions, in dB."""
    values = []
    for picture in pictures:
        x = torch.from_numpy(picture).to(model.device).permute(2, 0, 1)[None].float() / 255
        error = model.decode(model.encode(x)) - x
        values.append(-10 * torch.log10(error.square().mean()).item())
    return float(np.mean(values))


def painted(model: Model, prompts: list[Prompt], steps: int) -> list[np.ndarray]:
    """Each prompt painted from noise, seed after seed, RGB uint8."""
    stream = Stream(model, SIZE, SIZE)
    blank, pictures = Frame(np.zeros((SIZE, SIZE, 4), np.uint8)), []
    for i, prompt in enumerate(prompts):
        stream.apply(Snapshot({"/mode": "text", "/prompt": prompt.text, "/steps": steps, "/seed": 1000 + i}), wait=True)
        outputs = stream.step([blank])
        while not outputs:
            outputs = stream.step([])
        pictures.append(outputs[0].pixels[..., :3])
    return pictures


def pattern(prompt: Prompt, seed: int) -> np.ndarray:
    """A drawn picture of neither the family nor the colour that ``prompt`` names, RGB uint8."""
    rng = np.random.default_rng((SIZE, seed))
    while (other := look(rng)).family == prompt.family or prompt.colour in other.colours:
        pass
    return np.round(draw(other, rng, SIZE) * 255).astype(np.uint8)


def painted_over(model: Model, prompts: list[Prompt], strength: float, steps: int) -> list[np.ndarray]:
    """Each prompt painted over another pattern, RGB uint8."""
    stream, pictures = Stream(model, SIZE, SIZE), []
    for i, prompt in enumerate(prompts):
        stream.apply(
            Snapshot({"/prompt": prompt.text, "/strength": strength, "/steps": steps, "/seed": 1000 + i}), wait=True
        )
        outputs = stream.step([Frame(cv2.cvtColor(pattern(prompt, i), cv2.COLOR_RGB2RGBA))])
        while not outputs:
            outputs = stream.step([])
        pictures.append(outputs[0].pixels[..., :3])
    return pictures


def shares(pictures: list[np.ndarray], prompts: list[Prompt]) -> tuple[list[bool], list[bool]]:
    """Whether each picture has the colour, and the family, that its prompt names."""
    judge = classifier.load()
    named = list(zip(pictures, prompts, strict=True))
    colours = [dominant_colour(picture) == prompt.colour for picture, prompt in named]
    return colours, [
        classifier.family(judge, np.ascontiguousarray(picture)) == prompt.family for picture, prompt in named
    ]


def edges(picture: np.ndarray) -> np.ndarray:
    """Strength of the edges, (256, 256) float32, a little blurred so that a shift of a pixel counts little."""
    grey = cv2.GaussianBlur(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY).astype(np.float32), (0, 0), 2)
    return cv2.GaussianBlur(np.hypot(cv2.Sobel(grey, cv2.CV_32F, 1, 0), cv2.Sobel(grey, cv2.CV_32F, 0, 1)), (0, 0), 2)


def layout(
    model: Model, pictures: list[np.ndarray], prompts: list[str], strength: float, steps: int
) -> tuple[float, float]:
    """Mean edge correlation of outputs with their own input, and with the other clip's frames (chance)."""
    stream = Stream(model, SIZE, SIZE)
    own, chance = [], []
    for i, picture in enumerate(pictures):
        stream.apply(
            Snapshot({"/prompt": prompts[i % len(prompts)], "/strength": strength, "/steps": steps}), wait=True
        )
        outputs = stream.step([Frame(cv2.cvtColor(picture, cv2.COLOR_RGB2RGBA))])
        while not outputs:
            outputs = stream.step([])
        result = edges(np.ascontiguousarray(outputs[0].pixels[..., :3]))
        own.append(np.corrcoef(result.ravel(), edges(picture).ravel())[0, 1])
        other = pictures[(i + len(pictures) // 2) % len(pictures)]
        chance.append(np.corrcoef(result.ravel(), edges(other).ravel())[0, 1])
    return float(np.mean(own)), float(np.mean(chance))


def main() -> None:
    """Prints the figures, one a line."""
    parser = argparse.ArgumentParser(description="Measures the pocket model.")
    parser.add_argument("--model", default="pocket")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--clips", type=Path, nargs="*", default=[], help="videos of real footage")
    parser.add_argument("--sheet", type=Path, help="write the first 64 pictures as one PNG")
    options = parser.parse_args()
    device = pick_device(options.device)
    model = load(options.model, device, pick_dtype(options.dtype, device))
    frames = {path.stem: clip(path) for path in options.clips}
    for name, pictures in frames.items():
        print(f"autoencoder PSNR on {name} at {SIZE}²: {psnr(model, pictures):.2f} dB")
    prompts = fixed_prompts()
    pictures = painted(model, prompts, options.steps)
    colours, families = shares(pictures, prompts)
    print(f"colour named dominates, {options.steps} steps: {np.mean(colours):.1%} of {len(prompts)} prompts")
    print(f"family recognised, {options.steps} steps: {np.mean(families):.1%} of {len(prompts)} prompts")
    missed = {f: sum(not ok for ok, p in zip(families, prompts, strict=True) if p.family == f) for f in WORDS}
    print("families missed: " + ", ".join(f"{name} {count}" for name, count in missed.items() if count))
    wrong = {c: sum(not ok for ok, p in zip(colours, prompts, strict=True) if p.colour == c) for c in COLOURS}
    print("colours missed: " + ", ".join(f"{name} {count}" for name, count in wrong.items() if count))
    for strength in (0.6, 0.8):
        over = shares(painted_over(model, prompts, strength, options.steps), prompts)
        colour, family = (np.mean(right) for right in over)
        print(
            f"over another pattern at strength {strength}, {options.steps} steps: colour {colour:.1%}, family {family:.1%}"
        )
    if frames:
        shown, words = (
            [p for clip in frames.values() for p in clip],
            ["neon tunnel, magenta and cyan", "orange fire", "blue ink"],
        )
        for strength, steps in ((0.5, 2), (0.3, 2), (0.4, 2), (0.6, 2), (0.5, 1), (0.5, 4)):
            own, chance = layout(model, shown, words, strength, steps)
            print(
                f"edge correlation at strength {strength}, steps {steps}: {own:.2f} with the own input, {chance:.2f} with another"
            )
    if options.sheet:
        rows = [np.concatenate(pictures[i : i + 8], 1) for i in range(0, 64, 8)]
        sheet = cv2.resize(np.concatenate(rows), (1024, 1024), interpolation=cv2.INTER_AREA)
        cv2.imwrite(str(options.sheet), cv2.cvtColor(sheet, cv2.COLOR_RGB2BGR))


if __name__ == "__main__":
    main()
