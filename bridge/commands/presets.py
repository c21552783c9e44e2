"""``phosphene presets``: lists the presets, or renders a thumbnail of each."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterable

from tqdm import tqdm

from bridge.commands.options import (
    add_engine_options,
    add_flag,
    add_option,
    engine_options,
    parameter_values,
    preset_folders,
)
from bridge.commands.output_check import check_files, list_inputs, report_failed_writes
from bridge.errors import UserError
from bridge.file_reader import expand_user
from bridge.images import THUMBNAIL_PIXELS, encode_jpeg, fit
from bridge.performance.presets import PresetLibrary
from bridge.textures.pattern import draw
from engine.shared.files import create_atomically, replace_atomically
from engine.shared.frame import Frame, Pixels
from engine.shared.parameter import Value
from engine.shared.snapshot import Snapshot

HELP = "list the presets, or render a thumbnail of each"
#: Frames before a thumbnail is taken: feedback and walks need some to develop.
WARM_UP_FRAMES = 24


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    add_option(parser, "--thumbnails", metavar="DIR", help="folder to render a thumbnail of each preset into")
    clip = "video or folder of images that the thumbnails are rendered from"
    add_option(parser, "--input", metavar="IN", help=clip, default_text="a moving pattern")
    model = "model whose presets get thumbnails"
    add_option(parser, "--for", dest="model_kind", default="pocket", metavar="KIND", help=model)
    add_flag(parser, "--overwrite", help="replace existing thumbnails")
    add_engine_options(parser)


def main(options: argparse.Namespace) -> int:
    """List the presets, or render thumbnails with ``--thumbnails``. Raises UserError or InvalidValue."""
    library = PresetLibrary(preset_folders(options))
    if options.thumbnails is None:
        print(format_presets(library))
        return 0
    return render_thumbnails(options, library)


def render_thumbnails(options: argparse.Namespace, library: PresetLibrary) -> int:
    """Render ``NAME.jpg`` for each preset of the model ``--for``. Raises UserError or InvalidValue."""
    from engine.worker.offline import render as render_frames

    values = thumbnail_values(options)
    folder = expand_user(options.thumbnails)
    chosen = [preset for preset in library.ordered if preset.model == options.model_kind]
    if not chosen:
        raise UserError(f"no preset is for {options.model_kind!r}; choose another model with --for")
    targets = {preset.name: folder / f"{preset.name}.jpg" for preset in chosen}
    check_files(targets.values(), list_inputs(options, values), options.overwrite)
    with report_failed_writes(folder):
        folder.mkdir(parents=True, exist_ok=True)
    clip: Iterable[Pixels] = (draw("plasma", 256, 256, i / 30) for i in range(WARM_UP_FRAMES))
    if options.input:
        from bridge.commands.clip_reader import ClipReader

        clip = ClipReader(expand_user(options.input))
    images = list(itertools.islice(clip, WARM_UP_FRAMES))
    for preset in tqdm(chosen, unit="preset", desc="thumbnails"):
        snapshot = Snapshot(values | preset.recall_values, 1)
        width, height = snapshot.model.size
        frames = (Frame(fit(pixels, width, height, snapshot.output.fit), i, i / 30) for i, pixels in enumerate(images))
        *_, last = render_frames(frames, snapshot, engine_options(options))
        with report_failed_writes(targets[preset.name]):
            write = replace_atomically if options.overwrite else create_atomically
            with write(targets[preset.name]) as temporary:
                temporary.write_bytes(encode_jpeg(last, THUMBNAIL_PIXELS))
    print(f"{len(chosen)} thumbnails → {folder}")
    return 0


def thumbnail_values(options: argparse.Namespace) -> dict[str, Value]:
    """Return the parameters that the command line sets, and the built-in model that ``--for`` names.

    Raises UserError or InvalidValue.
    """
    from engine.models import BUILT_IN

    values = parameter_values(options)
    return {"/model": options.model_kind} | values if options.model_kind in BUILT_IN else values


def format_presets(library: PresetLibrary) -> str:
    """Return all presets as a table for the terminal."""
    rows = [
        (
            str(preset.number or ""),
            preset.name,
            preset.title,
            preset.model,
            f"{preset.timing.length:g} {preset.timing.unit}" if preset.timing.length else "",
        )
        for preset in library.ordered
    ]
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
