"""The stream's own state: few attributes, and nobody but the stream assigns to them."""

from __future__ import annotations

import ast
from pathlib import Path

import torch

from engine.diffusion.stream import Stream
from engine.models import load

ROOT = Path(__file__).parents[3]
MAX_ATTRIBUTES = 16


def test_a_stream_has_at_most_16_attributes() -> None:
    stream = Stream(load("pocket", torch.device("cpu"), torch.float32), 64, 64)
    assert len(vars(stream)) <= MAX_ATTRIBUTES, sorted(vars(stream))
    stream.close()
    stream.adapters.close()


def test_nothing_assigns_to_a_stream_from_outside() -> None:
    assigned = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for folder in ("engine", "bridge/commands")
        for path in (ROOT / folder).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and _is_stream(node.value)
    ]
    assert assigned == []


def _is_stream(node: ast.expr) -> bool:
    """Return whether the expression is called ``stream``, or is an attribute of that name."""
    name = node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""
    return name in ("stream", "old", "running")
