"""What strangers send: the kept corpus again, bytes of all kinds, and what is meant arriving as it was meant."""

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
from tests.fuzz.__main__ import counted
from tests.fuzz.targets import CORPUS, TARGETS, bundled, seeds

NUMBERS = [parameter for parameter in TABLE.values() if parameter.kind in ("float", "int") and parameter.has_value]
PLENTY = settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("target", TARGETS)
def test_the_corpus_again(target: str) -> None:
    kept = list((CORPUS / target).glob("*"))
    assert kept, "a search was kept for every reader"
    for data in seeds(target):
        TARGETS[target](data)


@pytest.mark.parametrize("target", TARGETS)
def test_any_bytes(target: str) -> None:
    @PLENTY
    @given(st.binary(max_size=400))
    def bytes_(data: bytes) -> None:
        TARGETS[target](data)

    bytes_()


@pytest.mark.parametrize("target", ["preset", "cue", "map", "wish", "listen", "query", "journal"])
def test_any_text(target: str) -> None:
    @PLENTY
    @given(st.text(max_size=200), st.sampled_from(seeds(target)), st.integers(0, 2000))
    def text(inserted: str, seed: bytes, place: int) -> None:
        TARGETS[target](seed[:place] + inserted.encode("utf-8", "replace") + seed[place:])

    text()


@PLENTY
@given(st.data())
def test_a_number_arrives_as_it_was_meant(data: st.DataObject) -> None:
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


@PLENTY
@given(
    st.lists(st.tuples(st.sampled_from(NUMBERS[:4]), st.floats(0, 1, width=32), st.sampled_from([1, 2])), max_size=30)
)
def test_of_a_flood_the_last_value_of_each_sender_is_kept_in_order(sent: list[tuple[Parameter, float, int]]) -> None:
    came = [(encode_message(ROOT + parameter.name, value), ("127.0.0.1", port)) for parameter, value, port in sent]
    kept = coalesce(came)
    names = [(parameter.name, port) for parameter, _, port in sent]
    expected = [came[i] for i in range(len(came)) if names[i] not in names[i + 1 :]]
    assert list(kept) == expected


def test_what_is_said_between_two_numbers_keeps_the_first() -> None:
    def strength(value: float) -> tuple[bytes, int]:
        return encode_message("/phosphene/strength", value), 1

    go = encode_message("/phosphene/cue/go", 1)
    assert coalesce([strength(0.1), (go, 1), strength(0.2), strength(0.3)]) == [strength(0.1), (go, 1), strength(0.3)]
    assert coalesce([strength(0.1), (go, 2), strength(0.2)]) == [(go, 2), strength(0.2)], "what others say is no matter"


def test_what_is_no_number_is_never_left_out() -> None:
    address = ("127.0.0.1", 1)
    came = [
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
    assert list(coalesce(came)) == came


@PLENTY
@given(
    st.lists(st.tuples(st.sampled_from(NUMBERS[:4]), st.floats(0, 1, width=32)), max_size=30), st.binary(max_size=12)
)
def test_a_bundle_is_thinned_and_does_the_same(sent: list[tuple[Parameter, float]], odd: bytes) -> None:
    packets = [encode_message(ROOT + parameter.name, value) for parameter, value in sent]
    whole = bundled(*packets)
    bundle = parse_packet(whole)
    assert isinstance(bundle, Bundle)
    assert len(bundle.contents) == len({parameter.name for parameter, _ in sent}) == len(sent) - bundle.coalesced
    plain, quick = State(), OscControl(State())
    for parameter, value in sent:
        plain.set(parameter.name, [value], "test")
    quick.handle_packet(whole, "test")
    assert dict(quick._state.snapshot()) == dict(plain.snapshot())
    assert quick.messages == len(sent)
    if odd:  # what is cut is told, and nothing of it is done
        before, refused = dict(quick._state.snapshot()), quick._state.rejected
        quick.handle_packet(whole + struct.pack(">i", 99) + odd, "test")
        assert dict(quick._state.snapshot()) == before
        assert quick._state.rejected == refused + 1
    quick.close()


def test_a_count_in_small(capsys: pytest.CaptureFixture[str]) -> None:
    assert counted(20_000, 3_000)
    assert capsys.readouterr().out.count("values unchanged") == 4
