"""Places for clients: a stranger never takes all, this machine keeps its own, and descriptors remain for the show."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.errors import UserError
from bridge.network.quota import (
    MAX_HTTP_CONNECTIONS,
    MAX_TCP_CONNECTIONS,
    MIN_CONNECTIONS,
    RESERVED_DESCRIPTORS,
    Quota,
    is_loopback,
    raise_descriptor_limit,
    share_descriptors,
)

ADDRESSES = ("127.0.0.1", "::1", "::ffff:127.0.0.1", "10.0.0.1", "10.0.0.2", "fe80::1%eth0")


@pytest.mark.parametrize(
    ("address", "expected"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("::ffff:127.0.0.1", True), ("10.0.0.1", False),
     ("fe80::1%eth0", False), ("", False), ("nonsense", False)],
)  # fmt: skip
def test_this_machine_is_recognized(address: str, expected: bool) -> None:
    assert is_loopback(address) == expected


def test_one_stranger_takes_a_quarter_and_all_strangers_leave_a_quarter() -> None:
    quota = Quota(64)
    assert sum(quota.take("10.0.0.1") for _ in range(100)) == 16
    assert sum(quota.take(f"10.0.1.{i}") for i in range(100)) == 32
    assert sum(quota.take("127.0.0.1") for _ in range(100)) == 16
    assert quota.held == 64
    quota.release("10.0.0.1")
    assert quota.take("10.0.0.1")
    assert not quota.take("10.0.0.1")


@given(st.integers(1, 100), st.lists(st.tuples(st.booleans(), st.sampled_from(ADDRESSES)), max_size=300))
def test_the_limits_hold_after_any_history(limit: int, history: list[tuple[bool, str]]) -> None:
    quota, held = Quota(limit), list[str]()
    for takes, address in history:
        if takes:
            if quota.take(address):
                held.append(address)
        elif address in held:
            held.remove(address)
            quota.release(address)
        strangers = [address for address in held if not is_loopback(address)]
        assert quota.held == len(held) <= limit
        assert len(strangers) <= limit - quota.local
        assert all(strangers.count(address) <= quota.per_address for address in strangers)
        assert len(held) == limit or quota.admits("127.0.0.1")


@pytest.mark.parametrize("descriptors", [48, 64, 256, 1024, 65536])
def test_connections_leave_descriptors_for_the_show(descriptors: int) -> None:
    limits = share_descriptors(descriptors)
    assert MIN_CONNECTIONS <= limits.http <= MAX_HTTP_CONNECTIONS
    assert MIN_CONNECTIONS <= limits.tcp <= MAX_TCP_CONNECTIONS
    if descriptors >= 256:
        assert limits.http + limits.tcp + RESERVED_DESCRIPTORS <= descriptors


def test_too_few_descriptors_are_one_line() -> None:
    with pytest.raises(UserError, match="permits 24 open files"):
        share_descriptors(24)


def test_the_limit_of_descriptors_is_raised_as_far_as_the_system_permits() -> None:
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (200, before[1]))
        raised = raise_descriptor_limit()
        assert raised == resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 200
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
