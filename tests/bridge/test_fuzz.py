"""Input from outside: the fuzz corpus again, random bytes, and valid input that must arrive unchanged."""

from __future__ import annotations

import logging
import struct
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bridge.control.state import State
from bridge.osc.coalesce import coalesce
from bridge.osc.dispatch import OscControl
from bridge.osc.packet import Bundle, parse_packet
from bridge.osc.subscriptions import encode_message
from engine.shared.parameter import Parameter
from engine.shared.table import ROOT, TABLE
from tests.fuzz.__main__ import fuzz_randomly
from tests.fuzz.targets import CORPUS, TARGETS, build_bundle, load_seeds

NUMBERS = [parameter for parameter in TABLE.values() if parameter.kind in ("float", "int") and parameter.has_value]
MANY_EXAMPLES = settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.fixture(autouse=True)
def silence_logging() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("target", TARGETS)
def test_the_corpus(target: str) -> None:
    assert any((CORPUS / target).iterdir()), "every target has a corpus"
    for data in load_seeds(target):
        TARGETS[target](data)


@pytest.mark.parametrize("target", TARGETS)
def test_any_bytes(target: str) -> None:
    @MANY_EXAMPLES
    @given(st.binary(max_size=400))
    def bytes_(data: bytes) -> None:
        TARGETS[target](data)

    bytes_()


@pytest.mark.parametrize("target", [name for name in TARGETS if name not in ("osc_packet", "osc_stream", "mailbox")])
def test_any_text(target: str) -> None:
    @MANY_EXAMPLES
    @given(st.text(max_size=200), st.sampled_from(load_seeds(target)), st.integers(0, 2000))
    def text(inserted: str, seed: bytes, position: int) -> None:
        TARGETS[target](seed[:position] + inserted.encode("utf-8", "replace") + seed[position:])

    text()


@MANY_EXAMPLES
@given(st.data())
def test_a_number_arrives_clamped_to_its_range(data: st.DataObject) -> None:
    state = State()
    control = OscControl(state)
    parameter: Parameter = data.draw(st.sampled_from(NUMBERS))
    value: Any = data.draw(
        st.floats(-1e9, 1e9, width=32) if parameter.kind == "float" else st.integers(-(2**31), 2**31 - 1)
    )
    control.handle_packet(encode_message(ROOT + parameter.name, value), "test")
    assert state.snapshot()[parameter.name] == pytest.approx(min(max(value, parameter.low), parameter.high), rel=1e-6)
    assert state.rejected == 0
    control.close()


@MANY_EXAMPLES
@given(
    st.lists(st.tuples(st.sampled_from(NUMBERS[:4]), st.floats(0, 1, width=32), st.sampled_from([1, 2])), max_size=30)
)
def test_coalescing_keeps_the_last_value_of_each_sender_in_order(sent: list[tuple[Parameter, float, int]]) -> None:
    packets = [(encode_message(ROOT + parameter.name, value), ("127.0.0.1", port)) for parameter, value, port in sent]
    remaining = coalesce(packets)
    names = [(parameter.name, port) for parameter, _, port in sent]
    expected = [packets[i] for i in range(len(packets)) if names[i] not in names[i + 1 :]]
    assert list(remaining) == expected


def test_a_message_between_two_numbers_keeps_the_first() -> None:
    def strength(value: float) -> tuple[bytes, int]:
        return encode_message("/phosphene/strength", value), 1

    go = encode_message("/phosphene/cue/go", 1)
    assert coalesce([strength(0.1), (go, 1), strength(0.2), strength(0.3)]) == [strength(0.1), (go, 1), strength(0.3)]
    assert coalesce([strength(0.1), (go, 2), strength(0.2)]) == [(go, 2), strength(0.2)], "other senders do not matter"


def test_messages_without_a_number_are_never_dropped() -> None:
    address = ("127.0.0.1", 1)
    packets = [
        (packet, address)
        for packet in (
            encode_message("/phosphene/cue/go", 1),
            encode_message("/phosphene/strength", "?"),
            b"#bundle\0",
            b"/x",
            b"",
            encode_message("/else", 1.0),
        )
        for _ in range(2)
    ]
    assert list(coalesce(packets)) == packets


@MANY_EXAMPLES
@given(
    st.lists(st.tuples(st.sampled_from(NUMBERS[:4]), st.floats(0, 1, width=32)), max_size=30), st.binary(max_size=12)
)
def test_a_coalesced_bundle_has_the_same_effect(sent: list[tuple[Parameter, float]], odd: bytes) -> None:
    packets = [encode_message(ROOT + parameter.name, value) for parameter, value in sent]
    whole = build_bundle(*packets)
    bundle = parse_packet(whole)
    assert isinstance(bundle, Bundle)
    assert len(bundle.contents) == len({parameter.name for parameter, _ in sent}) == len(sent) - bundle.coalesced
    expected, control = State(), OscControl(State())
    for parameter, value in sent:
        expected.set(parameter.name, [value], "test")
    control.handle_packet(whole, "test")
    assert dict(control._state.snapshot()) == dict(expected.snapshot())
    assert control.messages == len(sent)
    if odd:  # a truncated bundle is rejected as a whole
        before, rejected = dict(control._state.snapshot()), control._state.rejected
        control.handle_packet(whole + struct.pack(">i", 99) + odd, "test")
        assert dict(control._state.snapshot()) == before
        assert control._state.rejected == rejected + 1
    control.close()


def test_random_fuzzing_at_small_scale(capsys: pytest.CaptureFixture[str]) -> None:
    assert fuzz_randomly(20_000, 3_000)
    assert capsys.readouterr().out.count("values unchanged") == 4
