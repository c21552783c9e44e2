"""A model without weights, on the meta device, and files of adapters for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.models import Model
from tests.engine.meta import FAMILIES, load_meta, save_adapters


@pytest.fixture(scope="module")
def meta_adapters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_adapters(tmp_path_factory.mktemp("adapters"))


@pytest.fixture(scope="module")
def meta_model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return load_meta(str(FAMILIES["tiny"](tmp_path_factory.mktemp("model"))))
