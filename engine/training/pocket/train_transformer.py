"""``python -m engine.training.pocket.train_transformer``: train the pocket transformer, on pictures drawn by code.

Three stages: coupled rows, mixed rows, the distillation for 1 to 4 steps. Autoencoder, text encoder and tokenizer are
the pocket model's. A run that was killed continues when the same command is given again.
"""

from __future__ import annotations

import argparse
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import SD3Transformer2DModel
from transformers import CLIPTextModel, CLIPTokenizer

from engine.models import POCKET, POCKET_DIT
from engine.training.pocket import transformer
from engine.training.pocket.command_line import add_length, add_options, limit_of, parse
from engine.training.pocket.model_folder import save_component, write_folder
from engine.training.pocket.train import load_dataset
from engine.training.run_state import RunState

log = logging.getLogger(__name__)
#: Stage → folder of its result in ``--work``.
RESULTS = {"coupled": "coupled", "mixed": "teacher", "distillation": "transformer"}
STAGES = (*RESULTS, "save")
#: What the transformer shares with the pocket model.
SHARED_COMPONENTS = ("text_encoder", "tokenizer", "vae")
MODEL_INDEX = {
    "_class_name": "StableDiffusion3Pipeline",
    "feature_extractor": [None, None],
    "image_encoder": [None, None],
    "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "text_encoder_2": [None, None],
    "text_encoder_3": [None, None],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "tokenizer_2": [None, None],
    "tokenizer_3": [None, None],
    "transformer": ["diffusers", "SD3Transformer2DModel"],
    "vae": ["diffusers", "AutoencoderTiny"],
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Train from the requested or the unfinished stage to the end, and write the model folder."""
    options = parse_options(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    options.work.mkdir(parents=True, exist_ok=True)
    run_state = RunState(options.work / f"unfinished-{options.seed}-{options.pictures}.pt")
    for stage in STAGES[find_first_stage(options, run_state) : -1]:
        train_stage(stage, options, run_state)
    save(options.work, options.base, options.out)
    run_state.remove()


def find_first_stage(options: argparse.Namespace, run_state: RunState) -> int:
    """Return the index of the stage to begin with: ``--from``, or a later one that an earlier run left unfinished."""
    start, unfinished = STAGES.index(options.start), run_state.read_stage()
    if not unfinished or STAGES.index(unfinished) < start:
        return start
    log.info("continuing the unfinished run of %s; delete that file to train anew", run_state.path)
    return STAGES.index(unfinished)


def train_stage(stage: str, options: argparse.Namespace, run_state: RunState) -> None:
    """Train one stage on the result of the stage before, or on ``--resume``'s, and save its result."""
    torch.manual_seed(options.seed)
    part = STAGES.index(stage)
    if options.resume and stage == options.start:
        model = load_transformer(options.resume / "transformer")
    elif part == 0:
        model = transformer.new_transformer()
    else:
        model = load_transformer(options.work / RESULTS[STAGES[part - 1]])
    model = model.to(options.device)
    encoder, data = (
        load_encoder(options.base, options.device),
        load_dataset(options.work, options, options.base / "vae"),
    )
    limit, seed = limit_of(options, part), options.seed + part
    if stage == "coupled":
        transformer.train(
            model,
            encoder,
            data,
            limit,
            seed,
            (1, 12, 1),
            decay_share=0.05,
            head_weight=0.1,
            run_state=run_state,
            name=stage,
        )
    elif stage == "mixed":
        transformer.train(
            model, encoder, data, limit, seed, (5, 3, 6), peak=8e-4, decay_share=0.5, run_state=run_state, name=stage
        )
    else:
        transformer.distill(model, encoder, data, limit, seed, (6, 3, 3), run_state=run_state)
    model.save_pretrained(options.work / RESULTS[stage])


def load_transformer(folder: Path) -> SD3Transformer2DModel:
    """Load a transformer in float32."""
    return SD3Transformer2DModel.from_pretrained(folder, torch_dtype=torch.float32)


def load_encoder(base: Path, device: str) -> transformer.PooledCaptionEncoder:
    """Load tokenizer and text encoder of the model folder ``base``, the latter in float32."""
    text = CLIPTextModel.from_pretrained(base / "text_encoder", dtype=torch.float32)
    return transformer.PooledCaptionEncoder(CLIPTokenizer.from_pretrained(base / "tokenizer"), text.to(device))


def save(work: Path, base: Path, out: Path) -> None:
    """Write the diffusers folder: the transformer as float16, the shared components as they are in ``base``."""

    def write_components(folder: Path) -> None:
        for name in SHARED_COMPONENTS:
            shutil.copytree(base / name, folder / name, copy_function=shutil.copyfile)
        save_component(load_transformer(work / RESULTS["distillation"]), folder / "transformer")
        transformer.new_scheduler().save_pretrained(folder / "scheduler")

    write_folder(work, out, MODEL_INDEX, write_components)


def parse_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description="Train the pocket transformer.", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--from", dest="start", choices=STAGES, default=STAGES[0], help="first stage to run")
    parser.add_argument(
        "--resume", type=Path, metavar="FOLDER", help="model folder whose transformer the first stage starts from"
    )
    parser.add_argument(
        "--base",
        type=Path,
        metavar="FOLDER",
        default=POCKET,
        help="model folder whose autoencoder, text encoder and tokenizer are shared",
    )
    add_options(parser, Path("pocket-transformer-training"), POCKET_DIT, pictures=6_000)
    parts = ("COUPLED", "MIXED", "DISTILLATION")
    add_length(parser, parts, (11, 60, 15), "coupled rows, mixed rows and the distillation")
    return parse(parser, arguments, MODEL_INDEX)


if __name__ == "__main__":
    main()
