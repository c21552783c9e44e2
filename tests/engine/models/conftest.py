"""A small model to damage: saved once for a file of tests, copied for each test."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.engine.checkpoints import save_sd


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_sd(tmp_path_factory.mktemp("model") / "sd")


@pytest.fixture
def copy(model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(model, tmp_path / "copy"))
