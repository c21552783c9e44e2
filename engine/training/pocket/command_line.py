"""Options that the training commands share."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from engine.training.loop import Limit
from engine.training.pocket.model_folder import Index, check_folders


def add_options(parser: argparse.ArgumentParser, work: Path, out: Path, pictures: int) -> None:
    """Add folders, device, seed and number of pictures, with these defaults."""
    parser.add_argument("--work", type=Path, metavar="FOLDER", default=work, help="folder for the stages' results")
    parser.add_argument("--out", type=Path, metavar="FOLDER", default=out, help="model folder to write")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="torch device")
    parser.add_argument("--seed", type=int, default=1, help="seed of weights, pictures and batches")
    parser.add_argument(
        "--pictures", type=int, default=pictures, help="pictures of each kind, with half as many restyled pairs"
    )


def add_length(parser: argparse.ArgumentParser, parts: Sequence[str], minutes: Sequence[float], what: str) -> None:
    """Add ``--minutes`` and ``--steps``, one number for each of ``parts``."""
    length, names = parser.add_mutually_exclusive_group(), tuple(parts)
    length.add_argument(
        "--minutes", type=float, nargs=len(names), default=tuple(minutes), metavar=names, help=f"minutes for {what}"
    )
    length.add_argument(
        "--steps",
        type=int,
        nargs=len(names),
        metavar=names,
        help="optimiser steps instead of minutes, for repeatable weights",
    )


def limit_of(options: argparse.Namespace, part: int) -> Limit:
    """Return the limit of one of the parts of ``add_length``."""
    return Limit(steps=options.steps[part]) if options.steps else Limit(minutes=options.minutes[part])


def parse(parser: argparse.ArgumentParser, arguments: Sequence[str] | None, index: Index) -> argparse.Namespace:
    """Parse the command line. Exit with one line where the result would replace something else."""
    options = parser.parse_args(arguments)
    try:
        check_folders(options.work, options.out, index)
    except ValueError as error:
        parser.error(str(error))
    return options
