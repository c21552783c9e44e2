"""``python -m engine.training.pocket.train``: train the pocket model from scratch, on pictures drawn by code.

Three stages: the autoencoder, the text encoder with the denoiser, the distillation for 1 to 4 steps. Each stage's
result stays in ``--work``, so that a later run can start from it with ``--from``. With ``--compress`` autoencoder and
denoiser learn from a model with more layers instead, and the text encoder does not change.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import AutoencoderTiny, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from engine.models import POCKET
from engine.training.loop import Limit
from engine.training.pocket import autoencoder, compress, consistency_distillation, diffusion
from engine.training.pocket.command_line import add_length, add_options, limit_of, parse
from engine.training.pocket.dataset import LatentDataset, build_dataset
from engine.training.pocket.model_folder import save_component, write_folder
from engine.training.pocket.text_encoder import new_text_encoder, new_tokenizer

log = logging.getLogger(__name__)
SIZE = 256
STAGES = ("autoencoder", "diffusion", "distillation", "save")
STAGE_ALIASES = {"distil": "distillation"}
MODEL_INDEX = {
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


def main(arguments: Sequence[str] | None = None) -> None:
    """Train from the requested stage to the end, and write the model folder."""
    options = parse_options(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    work: Path = options.work
    work.mkdir(parents=True, exist_ok=True)
    start = STAGES.index(options.start)
    if options.compress:
        compress_model(work, options)
        start = STAGES.index("save")
    if start <= 0:
        autoencoder.train(limit_of(options, 0), options.seed, options.device).save_pretrained(work / "vae")
    if start <= 1:
        train_diffusion(work, options)
    if start <= 2:
        train_distillation(work, options)
    save(work, options.out)


def load_dataset(work: Path, options: argparse.Namespace, vae_folder: Path) -> LatentDataset:
    """Load the latents of drawn 256² pictures from ``work``; on first use draw, encode and save them there."""
    path = work / f"dataset-{options.seed}-{options.pictures}.pt"
    if path.exists():
        return torch.load(path, weights_only=False)  # written below by this command, never downloaded
    vae = AutoencoderTiny.from_pretrained(vae_folder, torch_dtype=torch.float32).eval()
    vae = vae.to(options.device, memory_format=torch.channels_last)
    dataset = build_dataset(vae, options.seed + SIZE, options.pictures, SIZE, options.device)
    torch.save(dataset, path)
    return dataset


def train_diffusion(work: Path, options: argparse.Namespace) -> None:
    """Train text encoder and denoiser: first mostly on coupled rows, then on mixed ones."""
    torch.manual_seed(options.seed)
    if options.resume:
        tokenizer, text, denoiser = load_parts(options.resume)
    else:
        tokenizer, denoiser = new_tokenizer(options.seed), diffusion.new_denoiser()
        text = new_text_encoder(tokenizer)
    text, denoiser = text.to(options.device), denoiser.to(options.device, memory_format=torch.channels_last)
    encoder = diffusion.CaptionEncoder(tokenizer, text)
    tokenizer.save_pretrained(work / "tokenizer")
    data, seed = load_dataset(work, options, work / "vae"), options.seed
    diffusion.train(denoiser, encoder, data, limit_of(options, 1), seed, rows=(1, 12, 1), decay_share=0.05)
    mixed_rows = (5, 3, 6)
    diffusion.train(denoiser, encoder, data, limit_of(options, 2), seed + 1, mixed_rows, peak=8e-4, head_weight=0.05)
    text.save_pretrained(work / "text_encoder")
    denoiser.save_pretrained(work / "teacher")


def load_parts(folder: Path) -> tuple[CLIPTokenizer, CLIPTextModel, UNet2DConditionModel]:
    """Load tokenizer, text encoder and denoiser of a model folder, in float32."""
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    text = CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=torch.float32)
    return tokenizer, text, UNet2DConditionModel.from_pretrained(folder / "unet", torch_dtype=torch.float32)


def train_distillation(work: Path, options: argparse.Namespace) -> None:
    """Distil the trained denoiser for few steps."""
    tokenizer = CLIPTokenizer.from_pretrained(work / "tokenizer")
    text = CLIPTextModel.from_pretrained(work / "text_encoder").to(options.device).eval()
    denoiser = UNet2DConditionModel.from_pretrained(work / "teacher")
    denoiser = denoiser.to(options.device, memory_format=torch.channels_last)
    data, encoder = load_dataset(work, options, work / "vae"), diffusion.CaptionEncoder(tokenizer, text)
    consistency_distillation.train(denoiser, encoder, data, limit_of(options, 3), options.seed + 2, rows=(6, 3, 3))
    denoiser.save_pretrained(work / "unet")


def compress_model(work: Path, options: argparse.Namespace) -> None:
    """Train an autoencoder and a denoiser with fewer layers to answer as those of the folder ``--compress``.

    One with 0 minutes is copied unchanged, from ``--resume`` where that is set.
    """
    tokenizer, text, teacher = load_parts(options.compress)
    tokenizer.save_pretrained(work / "tokenizer")
    text.save_pretrained(work / "text_encoder")
    compress_autoencoder(options).save_pretrained(work / "vae")
    start = load_parts(options.resume)[2] if options.resume else teacher
    minutes = options.compress_minutes[1]
    if not minutes:
        start.save_pretrained(work / "unet")
        return
    student = diffusion.new_denoiser()
    if removed := compress.copy_shared_layers(start, student):
        log.info("layers left out: %s", ", ".join(sorted({".".join(name.split(".")[:4]) for name in removed})))
    student, teacher = (model.to(options.device, memory_format=torch.channels_last) for model in (student, teacher))
    encoder = diffusion.CaptionEncoder(tokenizer, text.to(options.device).eval())
    data = load_dataset(work, options, work / "vae")
    compress.train(teacher, student, encoder, data, Limit(minutes=minutes), options.seed, rows=(6, 1, 5))
    student.save_pretrained(work / "unet")


def compress_autoencoder(options: argparse.Namespace) -> AutoencoderTiny:
    """Return the autoencoder with fewer layers, or the unchanged one with 0 minutes; see ``compress_model``."""
    teacher, start = (
        AutoencoderTiny.from_pretrained(folder / "vae", torch_dtype=torch.float32)
        for folder in (options.compress, options.resume or options.compress)
    )
    minutes = options.compress_minutes[0]
    if not minutes:
        return start
    student = start if options.resume else autoencoder.new_autoencoder()
    if not options.resume:
        log.info("layers left out: %s", ", ".join(autoencoder.copy_shared_layers(teacher, student)))
    return autoencoder.train(Limit(minutes=minutes), options.seed, options.device, teacher, student)


def save(work: Path, out: Path) -> None:
    """Write the diffusers folder: float16 safetensors in files below 4 MiB, the tokenizer in both of its formats."""
    write_folder(work, out, MODEL_INDEX, lambda folder: _write_components(work, folder))


def _write_components(work: Path, out: Path) -> None:
    for model, name in (
        (AutoencoderTiny.from_pretrained(work / "vae"), "vae"),
        (UNet2DConditionModel.from_pretrained(work / "unet"), "unet"),
        (CLIPTextModel.from_pretrained(work / "text_encoder"), "text_encoder"),
    ):
        save_component(model, out / name)
    tokenizer = CLIPTokenizer.from_pretrained(work / "tokenizer")
    tokenizer.save_pretrained(out / "tokenizer")
    bpe = json.loads((out / "tokenizer" / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    (out / "tokenizer" / "vocab.json").write_text(json.dumps(bpe["vocab"], ensure_ascii=False), encoding="utf-8")
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in bpe["merges"]]
    (out / "tokenizer" / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
    diffusion.new_scheduler().save_pretrained(out / "scheduler")


def parse_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; the spellings of earlier releases, such as ``--slim``, remain as aliases."""
    parser = argparse.ArgumentParser(
        description="Train the pocket model from scratch.", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument(
        "--from",
        dest="start",
        type=lambda name: STAGE_ALIASES.get(name, name),
        choices=STAGES,
        default=STAGES[0],
        help="first stage to run",
    )
    parser.add_argument(
        "--resume",
        type=Path,
        metavar="FOLDER",
        help="model folder whose text encoder and denoiser the training starts from; with --compress the students'",
    )
    parser.add_argument(
        "--compress",
        "--slim",
        type=Path,
        metavar="FOLDER",
        help="model folder with more layers, the teacher; replaces all stages before saving",
    )
    parser.add_argument(
        "--compress-minutes",
        "--slim-minutes",
        type=float,
        nargs=2,
        default=(40, 50),
        metavar=("AUTOENCODER", "DENOISER"),
        help="length of each compression; 0 copies that model unchanged",
    )
    add_options(parser, Path("pocket-training"), POCKET, pictures=4_500)
    add_length(
        parser,
        ("AUTOENCODER", "COUPLED", "MIXED", "DISTILLATION"),
        (12, 30, 38, 8),
        "the autoencoder, the denoiser on coupled and on mixed rows, and the distillation",
    )
    return parse(parser, arguments, MODEL_INDEX)


if __name__ == "__main__":
    main()
