"""``python -m engine.training.pocket.train``: the pocket model from nothing, on pictures that the code draws.

Three stages: the autoencoder, the text encoder with the denoiser, the distillation for 1 to 4 steps.
Each stage's result is kept in ``--work``, so a later run can start from it with ``--from``. With ``--slim`` autoencoder and denoiser are
made of ones with more layers instead, and the text encoder stays as it is.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderTiny, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from engine.models import POCKET
from engine.training.pocket import autoencoder, diffusion
from engine.training.pocket import compress as slim
from engine.training.pocket import consistency_distillation as distil
from engine.training.pocket.dataset import Lessons, lessons
from engine.training.pocket.text_encoder import new_text_encoder, new_tokenizer

log = logging.getLogger(__name__)
SIZE = 256
STAGES = ("autoencoder", "diffusion", "distil", "save")


def main() -> None:
    """Trains from the stage asked for to the end, and writes the model folder."""
    options = _options()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    work: Path = options.work
    work.mkdir(parents=True, exist_ok=True)
    start = STAGES.index(options.start)
    if options.slim:
        train_slim(work, options)
        start = STAGES.index("save")
    if start <= 0:
        autoencoder.train(options.minutes[0], options.seed, options.device).save_pretrained(work / "vae")
    if start <= 1:
        train_diffusion(work, options)
    if start <= 2:
        train_distilled(work, options)
    save(work, options.out)


def drawn(work: Path, options: argparse.Namespace) -> Lessons:
    """Drawn pictures of 256² and their latents under the trained autoencoder, kept in ``work`` for the stages after."""
    kept = work / f"lessons-{options.seed}-{options.pictures}.pt"
    if kept.exists():
        return torch.load(kept, weights_only=False)  # written by the line below, never fetched
    vae = AutoencoderTiny.from_pretrained(work / "vae").to(options.device, memory_format=torch.channels_last).eval()
    made = lessons(vae, options.seed + SIZE, options.pictures, SIZE, options.device)
    torch.save(made, kept)
    return made


def train_diffusion(work: Path, options: argparse.Namespace) -> None:
    """Text encoder and denoiser: first what pure noise becomes, then everything."""
    torch.manual_seed(options.seed)
    if options.resume:
        tokenizer, text, denoiser = earlier(options.resume)
    else:
        tokenizer, denoiser = new_tokenizer(options.seed), diffusion.new_denoiser()
        text = new_text_encoder(tokenizer)
    text, denoiser = text.to(options.device), denoiser.to(options.device, memory_format=torch.channels_last)
    encoder = diffusion.Encoder(tokenizer, text)
    tokenizer.save_pretrained(work / "tokenizer")
    minutes, data = options.minutes, drawn(work, options)
    diffusion.train(denoiser, encoder, data, minutes[1], options.seed, rows=(1, 12, 1), settle=0.05)
    diffusion.train(denoiser, encoder, data, minutes[2], options.seed + 1, rows=(5, 3, 6), peak=8e-4, heads=0.05)
    text.save_pretrained(work / "text_encoder")
    denoiser.save_pretrained(work / "teacher")


def earlier(folder: Path) -> tuple[CLIPTokenizer, CLIPTextModel, UNet2DConditionModel]:
    """The parts of an earlier model folder, in float32."""
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    text = CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=torch.float32)
    return tokenizer, text, UNet2DConditionModel.from_pretrained(folder / "unet", torch_dtype=torch.float32)


def train_distilled(work: Path, options: argparse.Namespace) -> None:
    """The few-step student of the trained denoiser."""
    tokenizer = CLIPTokenizer.from_pretrained(work / "tokenizer")
    text = CLIPTextModel.from_pretrained(work / "text_encoder").to(options.device).eval()
    denoiser = UNet2DConditionModel.from_pretrained(work / "teacher").to(
        options.device, memory_format=torch.channels_last
    )
    data = drawn(work, options)
    distil.train(
        denoiser, diffusion.Encoder(tokenizer, text), data, options.minutes[3], options.seed + 2, rows=(6, 3, 3)
    )
    denoiser.save_pretrained(work / "unet")


def train_slim(work: Path, options: argparse.Namespace) -> None:
    """Autoencoder and denoiser of fewer layers, which learn to answer as those in the folder asked for.

    With no minutes for one of the two it stays as it is, that of the folder to resume if there is one.
    """
    tokenizer, text, larger = earlier(options.slim)
    tokenizer.save_pretrained(work / "tokenizer")
    text.save_pretrained(work / "text_encoder")
    slim_autoencoder(options).save_pretrained(work / "vae")
    resumed = earlier(options.resume)[2] if options.resume else larger
    if not options.slim_minutes[1]:
        resumed.save_pretrained(work / "unet")
        return
    smaller = diffusion.new_denoiser()
    if left := slim.carry_over(resumed, smaller):
        log.info("left behind: %s", ", ".join(sorted({".".join(name.split(".")[:4]) for name in left})))
    smaller, larger = (model.to(options.device, memory_format=torch.channels_last) for model in (smaller, larger))
    encoder = diffusion.Encoder(tokenizer, text.to(options.device).eval())
    slim.train(larger, smaller, encoder, drawn(work, options), options.slim_minutes[1], options.seed, rows=(6, 1, 5))
    smaller.save_pretrained(work / "unet")


def slim_autoencoder(options: argparse.Namespace) -> AutoencoderTiny:
    """The autoencoder with fewer layers, if there are minutes for it; see ``train_slim``."""
    larger, resumed = (
        AutoencoderTiny.from_pretrained(folder / "vae", torch_dtype=torch.float32)
        for folder in (options.slim, options.resume or options.slim)
    )
    if not options.slim_minutes[0]:
        return resumed
    smaller = resumed if options.resume else autoencoder.new_autoencoder()
    if not options.resume:
        log.info("left behind: %s", ", ".join(autoencoder.carry_over(larger, smaller)))
    return autoencoder.train(options.slim_minutes[0], options.seed, options.device, larger, smaller)


def save(work: Path, out: Path) -> None:
    """Writes the diffusers folder: float16 safetensors in files below 4 MiB, and the tokenizer in both of its formats."""
    shutil.rmtree(out, ignore_errors=True)
    shard = "3800KB"
    AutoencoderTiny.from_pretrained(work / "vae").half().save_pretrained(out / "vae", max_shard_size=shard)
    UNet2DConditionModel.from_pretrained(work / "unet").half().save_pretrained(out / "unet", max_shard_size=shard)
    CLIPTextModel.from_pretrained(work / "text_encoder").half().save_pretrained(
        out / "text_encoder", max_shard_size=shard
    )
    tokenizer = CLIPTokenizer.from_pretrained(work / "tokenizer")
    tokenizer.save_pretrained(out / "tokenizer")
    bpe = json.loads((out / "tokenizer" / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    (out / "tokenizer" / "vocab.json").write_text(json.dumps(bpe["vocab"], ensure_ascii=False), encoding="utf-8")
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in bpe["merges"]]
    (out / "tokenizer" / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
    diffusion.new_scheduler().save_pretrained(out / "scheduler")
    index = {
        "_class_name": "StableDiffusionPipeline",
        "feature_extractor": [None, None],
        "safety_checker": [None, None],
        "requires_safety_checker": False,
        "image_encoder": [None, None],
        "scheduler": ["diffusers", "LCMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderTiny"],
    }
    (out / "model_index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    for config in out.glob("*/config.json"):  # no path of the machine that trained it
        text = json.loads(config.read_text(encoding="utf-8"))
        text.pop("_name_or_path", None)
        config.write_text(json.dumps(text, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    total = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    log.info("wrote %s, %.2f MiB", out, total / 2**20)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Trains the pocket model from scratch.")
    parser.add_argument("--from", dest="start", choices=STAGES, default=STAGES[0], help="the first stage to run")
    parser.add_argument(
        "--resume",
        type=Path,
        help="an earlier model folder to go on from: text encoder and denoiser; with --slim what is slimmed",
    )
    parser.add_argument(
        "--slim", type=Path, help="a model folder of more layers to learn from, in place of the stages before saving"
    )
    parser.add_argument(
        "--slim-minutes",
        type=float,
        nargs=2,
        default=(40, 50),
        metavar=("AE", "DENOISER"),
        help="with --slim; 0 leaves one as it is",
    )
    parser.add_argument("--work", type=Path, default=Path("pocket-training"), help="folder for what the stages leave")
    parser.add_argument("--out", type=Path, default=POCKET, help="the model folder to write")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--pictures", type=int, default=4_500, help="pictures of each kind; half as many restyled pairs"
    )
    parser.add_argument(
        "--minutes", type=float, nargs=4, default=(12, 30, 38, 8), metavar=("AE", "COUPLED", "MIXED", "DISTIL"),
        help="minutes for the autoencoder, the denoiser on coupled and on mixed rows, and the distillation",
    )  # fmt: skip
    return parser.parse_args()


if __name__ == "__main__":
    main()
