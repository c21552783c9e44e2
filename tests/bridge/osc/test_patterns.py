"""OSC address patterns against the parameter table, also after hook files changed it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from bridge.control.hook_parameters import HookWatch
from bridge.control.state import State
from bridge.osc.coalesce import coalesce
from bridge.osc.dispatch import OscControl
from bridge.osc.patterns import match_pattern
from bridge.osc.subscriptions import encode_message
from engine.shared.parameter import Parameter
from engine.shared.table import TABLE, declare


@pytest.fixture(autouse=True)
def restore_table() -> Iterator[None]:
    yield
    declare([])


def test_patterns_stay_within_one_part_of_the_address() -> None:
    assert match_pattern("/phosphene/prompt/[1-4]/weight") == tuple(f"/prompt/{i}/weight" for i in (1, 2, 3, 4))
    assert match_pattern("/phosphene/seed*") == ("/seed",)
    assert match_pattern("/phosphene/s*/m*") == ("/seed/mix", "/similarity/max_skip", "/similarity/measure")
    assert match_pattern("/phosphene/[unclosed") == ()
    assert match_pattern("/phosphene/" + "*" * 500 + "q") == ()


def test_a_pattern_that_was_used_before_a_hook_file_came_matches_its_parameters(tmp_path: Path) -> None:
    state = State()
    control = OscControl(state)
    switch_off = encode_message("/phosphene/hook/*/on", 0)
    control.handle_packet(switch_off, "desk")
    assert state.rejected == 1
    watch = HookWatch(str(tmp_path), state)
    (tmp_path / "glow.py").write_text("")
    watch.poll()
    control.handle_packet(switch_off, "desk")
    assert state.rejected == 1
    assert state.snapshot()["/hook/glow/on"] is False
    (tmp_path / "glow.py").unlink()
    watch.poll()
    control.handle_packet(switch_off, "desk")
    assert state.rejected == 2
    watch.close()
    control.close()


def test_numbers_for_a_new_hook_are_coalesced() -> None:
    packets = [(encode_message("/phosphene/hook/glow/amount", value), 1) for value in (0.25, 0.5)]
    assert coalesce(packets) == packets
    declare([Parameter("/hook/glow/amount", "float", 0.0, "")])
    assert coalesce(packets) == packets[1:]


def test_the_table_may_change_while_it_is_iterated() -> None:
    version = TABLE.version
    names = iter(TABLE)
    next(names)
    declare([Parameter("/hook/glow/amount", "float", 0.0, "")])
    assert "/hook/glow/amount" not in list(names)
    assert "/hook/glow/amount" in TABLE
    assert TABLE.version > version


def test_a_value_is_clamped_when_its_hook_declares_a_narrower_range() -> None:
    state = State()
    state.declare([Parameter("/hook/glow/amount", "float", 0.0, "")])
    state.set("/hook/glow/amount", [0.9], "desk")
    state.declare([Parameter("/hook/glow/amount", "float", 0.0, "", high=0.5)])
    assert state.snapshot()["/hook/glow/amount"] == 0.5
