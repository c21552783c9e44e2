"""User hooks: loaded, changed, broken and deleted while frames pass."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from engine.image.hooks import Hooks
from engine.shared.snapshot import Snapshot
from tests.engine.transfers import META, Transfers

DIM = """
PARAMETERS = {"amount": (0.5, 0.0, 1.0, "Brightness")}
def after(pictures, values, seconds):
    return pictures * values["amount"]
"""
SETTINGS = Snapshot({"/hook/dim/on": True, "/hook/dim/amount": 0.25}).hooks


def write_hook(folder: Path, name: str, text: str, tick: int = 0) -> Path:
    path = folder / f"{name}.py"
    path.write_text(text, encoding="utf-8")
    os.utime(path, ns=(tick, tick))
    return path


@pytest.fixture
def picture() -> torch.Tensor:
    return torch.rand(2, 3, 8, 8)


def test_without_a_folder_there_are_no_hooks(picture: torch.Tensor) -> None:
    hooks = Hooks(None)
    assert hooks.run("after", picture, Snapshot().hooks) is picture
    assert not hooks.is_dynamic


def test_a_hook_changes_its_stage_by_its_values(tmp_path: Path, picture: torch.Tensor) -> None:
    write_hook(tmp_path, "dim", DIM)
    hooks = Hooks(tmp_path)
    assert torch.allclose(hooks.run("after", picture, SETTINGS), picture * 0.25)
    assert hooks.run("before", picture, SETTINGS) is picture
    assert hooks.run("after", picture, Snapshot({"/hook/dim/on": False, "/hook/dim/amount": 0.25}).hooks) is picture
    write_hook(tmp_path, "dim", DIM.replace("* values", "* 2 * values"), tick=5)
    hooks.poll()
    assert torch.allclose(hooks.run("after", picture, SETTINGS), picture * 0.5), "a changed file is reloaded"
    write_hook(tmp_path, "later", "def after(pictures, values, seconds):\n    return 1 - pictures\n")
    hooks.poll()
    assert torch.allclose(hooks.run("after", picture, SETTINGS), 1 - picture * 0.5), "hooks run in name order"
    (tmp_path / "dim.py").unlink()
    hooks.poll()
    assert torch.allclose(hooks.run("after", picture, SETTINGS), 1 - picture)
    hooks.close()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("    raise RuntimeError('no\\nmore')", "after, line 2: RuntimeError: no"),
        (
            "    return pictures[:, :1]",
            "after: TypeError: returned a tensor (2, 1, 8, 8), expected a tensor",
        ),
        ("    return None", "after: TypeError: returned a NoneType, expected a tensor (2, 3, 8, 8)"),
        ("    return pictures / 0 * 0", "after: ValueError: returned NaN or infinity"),
        ("    return missing", "after, line 2: NameError: name 'missing' is not defined"),
    ],
)
def test_a_hook_that_fails_is_disabled_with_one_line(
    tmp_path: Path, picture: torch.Tensor, body: str, message: str
) -> None:
    write_hook(tmp_path, "bad", f"def after(pictures, values, seconds):\n{body}\n")
    write_hook(tmp_path, "dim", DIM)
    hooks = Hooks(tmp_path)
    for _ in range(3):
        assert torch.allclose(hooks.run("after", picture, SETTINGS), picture * 0.25), "the other hooks keep running"
    assert len(hooks.notes) == 1
    assert hooks.notes[0].startswith(f"hook bad disabled: {message}")
    write_hook(tmp_path, "bad", "def after(pictures, values, seconds):\n    return pictures * 2\n", tick=9)
    hooks.poll()
    assert torch.allclose(hooks.run("after", picture, SETTINGS), picture * 0.5), "enabled again once its file is fixed"
    hooks.close()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def after(:", "hook bad not loaded, line 1: SyntaxError"),
        ("import no_such_module", "hook bad not loaded, line 1: ModuleNotFoundError"),
        ("x = 1", "hook bad not loaded: it defines none of before, latent, after"),
    ],
)
def test_a_hook_that_cannot_be_loaded_is_reported_in_one_line(
    tmp_path: Path, picture: torch.Tensor, text: str, message: str
) -> None:
    write_hook(tmp_path, "bad", text)
    hooks = Hooks(tmp_path)
    hooks.poll()
    assert len(hooks.notes) == 1
    assert hooks.notes[0].startswith(message)
    assert hooks.run("after", picture, SETTINGS) is picture
    hooks.close()


def test_on_a_device_the_check_is_read_with_the_output(tmp_path: Path) -> None:
    write_hook(tmp_path, "bad", "def after(pictures, values, seconds):\n    return pictures / 0\n")
    write_hook(tmp_path, "dim", DIM)
    hooks = Hooks(tmp_path)
    with Transfers() as transfers:
        result = hooks.run("after", torch.zeros(1, 3, 8, 8, device=META), SETTINGS)
    assert result.is_meta
    assert not transfers.reads
    checks = hooks.take_checks()
    assert [check.hook.name for check in checks] == ["bad", "dim"]
    assert hooks.take_checks() == ()
    hooks.judge(checks, [True, True])
    assert not hooks.notes
    hooks.judge(checks, [False, True])
    hooks.judge(checks, [False, True])
    assert hooks.notes == ["hook bad disabled: after: ValueError: returned NaN or infinity"]
    hooks.run("after", torch.zeros(1, 3, 8, 8, device=META), SETTINGS)
    assert [check.hook.name for check in hooks.take_checks()] == ["dim"]
    hooks.close()
