"""The model folder that a training writes: in diffusers format, whole or not at all, over an earlier result alone."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from engine.shared.files import temporary_name
from engine.shared.user_files import read_bytes

log = logging.getLogger(__name__)
INDEX_NAME = "model_index.json"
MAX_INDEX_BYTES = 65536
MAX_SHARD_SIZE = "3800KB"
#: The content of a folder's index: its pipeline's class, and library and class of each component.
Index = Mapping[str, Any]


def list_entries(index: Index) -> set[str]:
    """Return the names of what a model folder with this index holds."""
    return {INDEX_NAME} | {name for name, entry in index.items() if isinstance(entry, list) and entry[0]}


def check_folders(work: Path, out: Path, index: Index) -> None:
    """Check before the training that its result replaces nothing but an earlier result. Raises ValueError."""
    if (work / INDEX_NAME).exists():
        raise ValueError(f"--work {work} is a model folder; choose another")
    if not os.path.lexists(out):
        return
    if out.is_symlink() or not out.is_dir():
        raise ValueError(f"--out {out} is not a folder")
    entries = {path.name for path in out.iterdir()}
    if not entries:
        return
    try:
        content = json.loads(read_bytes(out / INDEX_NAME, MAX_INDEX_BYTES))
    except (OSError, ValueError):
        content = None
    if content != index or entries - list_entries(index):
        raise ValueError(f"--out {out} holds something else than a model that this command wrote; choose another")


def write_folder(work: Path, out: Path, index: Index, write_components: Callable[[Path], None]) -> None:
    """Write a model folder next to ``out`` and move it there when it is whole, over an earlier result.

    ``write_components`` fills it. Raises what that does, OSError, and ValueError as ``check_folders`` does.
    """
    temporary, replaced = temporary_name(out), temporary_name(out)
    try:
        write_components(temporary)
        (temporary / INDEX_NAME).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
        check_folders(work, out, index)
        if out.exists():
            out.rename(replaced)
        temporary.rename(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    shutil.rmtree(replaced, ignore_errors=True)
    total = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    log.info("wrote %s, %.2f MiB", out, total / 2**20)


def save_component(model: Any, folder: Path) -> None:
    """Write a component as float16 safetensors in files below 4 MiB. The model itself becomes float16."""
    model.half().save_pretrained(folder, max_shard_size=MAX_SHARD_SIZE)
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config.pop("_name_or_path", None)  # no path of the training machine
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
