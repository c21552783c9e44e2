"""Users' effects: loaded, changed, broken and taken away while frames pass."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from engine.image.hooks import Hooks
from engine.shared.snapshot import Snapshot

DIM = 'PARAMETERS = {"amount": (0.5, 0.0, 1.0, "How much")}\ndef after(pictures, values, seconds):\n    return pictures * values["amount"]\n'
VALUES = Snapshot({"/hook/dim/on": True, "/hook/dim/amount": 0.25})


def written(folder: Path, name: str, text: str, tick: int = 0) -> Path:
    path = folder / f"{name}.py"
    path.write_text(text, encoding="utf-8")
    os.utime(path, ns=(tick, tick))
    return path


@pytest.fixture
def picture() -> torch.Tensor:
    return torch.rand(2, 3, 8, 8)


def test_no_folder_is_no_hooks(picture: torch.Tensor) -> None:
    hooks = Hooks(None)
    assert hooks.run("after", picture, Snapshot()) is picture
    assert not hooks.moving


def test_a_hook_changes_its_stage_by_its_values(tmp_path: Path, picture: torch.Tensor) -> None:
    written(tmp_path, "dim", DIM)
    hooks = Hooks(tmp_path)
    assert torch.allclose(hooks.run("after", picture, VALUES), picture * 0.25)
    assert hooks.run("before", picture, VALUES) is picture
    assert hooks.run("after", picture, Snapshot({"/hook/dim/on": False, "/hook/dim/amount": 0.25})) is picture
    written(tmp_path, "dim", DIM.replace("* values", "* 2 * values"), tick=5)
    hooks.look()
    assert torch.allclose(hooks.run("after", picture, VALUES), picture * 0.5), "a changed file is loaded again"
    written(tmp_path, "later", "def after(pictures, values, seconds):\n    return 1 - pictures\n")
    hooks.look()
    assert torch.allclose(hooks.run("after", picture, VALUES), 1 - picture * 0.5), "in the order of their names"
    (tmp_path / "dim.py").unlink()
    hooks.look()
    assert torch.allclose(hooks.run("after", picture, VALUES), 1 - picture)
    hooks.close()


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("    raise RuntimeError('no\\nmore')", "after, line 2: RuntimeError: no"),
        ("    return pictures[:, :1]", "after: TypeError: it answered a tensor (2, 1, 8, 8) for a tensor (2, 3, 8, 8)"),
        ("    return None", "after: TypeError: it answered a NoneType for a tensor (2, 3, 8, 8)"),
        ("    return pictures / 0 * 0", "after: ValueError: its answer holds values that are not numbers"),
        ("    return missing", "after, line 2: NameError: name 'missing' is not defined"),
    ],
)
def test_one_that_fails_is_switched_off_with_one_line(
    tmp_path: Path, picture: torch.Tensor, body: str, told: str
) -> None:
    written(tmp_path, "bad", f"def after(pictures, values, seconds):\n{body}\n")
    written(tmp_path, "dim", DIM)
    hooks = Hooks(tmp_path)
    for _ in range(3):
        assert torch.allclose(hooks.run("after", picture, VALUES), picture * 0.25), "the others go on"
    assert hooks.notes == [f"hook bad is switched off: {told}"]
    written(tmp_path, "bad", "def after(pictures, values, seconds):\n    return pictures * 2\n", tick=9)
    hooks.look()
    assert torch.allclose(hooks.run("after", picture, VALUES), picture * 0.5), "mended, it is on again"
    hooks.close()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("def after(:", "hook bad is not loaded, line 1: SyntaxError"),
        ("import no_such_module", "hook bad is not loaded, line 1: ModuleNotFoundError"),
        ("x = 1", "hook bad: it has none of the functions before, latent, after"),
    ],
)
def test_one_that_cannot_be_loaded_is_one_line(tmp_path: Path, picture: torch.Tensor, text: str, told: str) -> None:
    written(tmp_path, "bad", text)
    hooks = Hooks(tmp_path)
    hooks.look()
    assert len(hooks.notes) == 1
    assert hooks.notes[0].startswith(told)
    assert hooks.run("after", picture, VALUES) is picture
    hooks.close()
