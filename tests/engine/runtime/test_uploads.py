"""Uploads: the values arrive, in one copy, once each, and constants are made once."""

from __future__ import annotations

import pytest
import torch

from engine.runtime.uploads import MAX_CONSTANTS, UploadMemo, constant, pack, unpack, upload, upload_packed
from tests.engine.transfers import META, Transfers

CPU = torch.device("cpu")
TENSORS = [
    torch.arange(24, dtype=torch.uint8).view(2, 3, 4),
    torch.randn(3, 5).T,
    torch.tensor(7.5, dtype=torch.float64),
    torch.empty(0, 3),
    torch.randn(4, dtype=torch.complex64),
]


def test_a_packet_holds_every_tensor() -> None:
    parts = unpack(pack(TENSORS), TENSORS)
    assert len(parts) == len(TENSORS)
    for part, tensor in zip(parts, TENSORS, strict=True):
        assert part.dtype == tensor.dtype
        assert torch.equal(part, tensor)
        assert part.data_ptr() % 16 == 0 or not part.numel()


def test_a_packet_is_one_copy_and_none_on_a_cpu() -> None:
    with Transfers() as transfers:
        sent = upload_packed(TENSORS, META)
    assert len(transfers.uploads) == 1
    assert [tensor.shape for tensor in sent] == [tensor.shape for tensor in TENSORS]
    same = upload_packed(TENSORS, CPU)
    assert all(one is other for one, other in zip(same, TENSORS, strict=True))


def test_an_upload_is_pinned_and_queued_on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """Check the calls: there is no CUDA device here."""
    calls: list[object] = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: calls.append("pinned") or tensor)
    monkeypatch.setattr(torch.Tensor, "to", lambda tensor, *target, **options: calls.append((target, options)))
    device = torch.device("cuda")
    upload([1.0, 2.0], device)
    assert calls == ["pinned", ((device,), {"non_blocking": True})]
    calls.clear()
    upload(torch.zeros(2), torch.device("mps"))
    assert calls == [((torch.device("mps"),), {"non_blocking": False})], "MPS may read it after it is freed"


def test_an_upload_takes_numbers_and_tensors() -> None:
    assert torch.equal(upload([[1, 2], [3, 4]], CPU), torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    assert upload((1, 2), CPU, torch.int64).dtype == torch.int64
    assert upload(torch.ones(2), CPU, torch.float16).dtype == torch.float16


def test_staged_values_are_uploaded_once_and_with_the_tensors_of_the_tick() -> None:
    recorded: list[torch.Tensor] = []
    memo = UploadMemo(META, recorded.append, max_entries=3)
    values = {name: lambda: torch.zeros(2, 3) for name in "ab"}
    with Transfers() as transfers:
        (picture,) = memo.stage([torch.zeros(4)], values)
        assert memo.get("a", lambda: pytest.fail("it was staged")).shape == (2, 3)
    assert len(transfers.uploads) == 1
    assert picture.shape == (4,)
    assert len(recorded) == 2, "other streams read them too"
    with Transfers() as transfers:
        assert memo.stage([], values) == []
    assert not transfers.uploads
    memo.stage([], {name: lambda: torch.zeros(1) for name in "cde"})
    with Transfers() as transfers:
        memo.get("a", lambda: torch.zeros(2, 3))
    assert len(transfers.uploads) == 1, "only so many are stored"


def test_values_on_a_cpu_are_computed_when_they_are_read() -> None:
    memo = UploadMemo(CPU)
    tensor = torch.ones(2)
    assert memo.stage([tensor], {"a": lambda: pytest.fail("too early")}) == [tensor]
    assert torch.equal(memo.get("a", lambda: torch.full((2,), 3.0)), torch.full((2,), 3.0))
    assert torch.equal(memo.get("a", lambda: torch.zeros(2)), torch.full((2,), 3.0))


def test_a_constant_is_made_once_for_each_device_and_dtype() -> None:
    one = constant((0.25, 0.5), CPU)
    assert constant((0.25, 0.5), CPU) is one
    assert constant((0.25, 0.5), CPU, torch.float64).dtype == torch.float64
    assert torch.equal(constant(((1, 2), (3, 4)), CPU), torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    assert not one.is_inference(), "training may use it"
    assert constant.cache_info().maxsize == MAX_CONSTANTS
