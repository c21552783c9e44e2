"""CUDA graphs: recorded ahead on another thread, replayed in the frame loop, without them where CUDA refuses."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from engine.compile import Accelerator
from engine.compile.cuda_graphs import CaptureFailed, CudaGraphRuntime, GraphedFunction, GraphedModule
from engine.compile.dispatch import Backend, CompiledModule, RowCounts
from engine.compile.host_reads import HostReadError, check_host_reads
from engine.models import load
from engine.models.autoencoders import make_codec
from tests.engine.compile.fake_graphs import FakeGraphs, Peeking, Scale
from tests.waiting import until

CPU = torch.device("cpu")
ROWS = {"denoiser": RowCounts((1, 2, 4), 8)}


def double(tensors: Any) -> list[torch.Tensor]:
    return [tensors[0] * 2 + tensors[1]]


def inputs(rows: int) -> list[torch.Tensor]:
    return [torch.randn(rows, 3), torch.randn(rows, 1)]


def record(function: GraphedFunction, *rows: int) -> None:
    for count in rows:
        function.publish(function.record(inputs(count)))


def component(module: torch.nn.Module | None = None) -> CompiledModule:
    """Return a component that has been called once."""
    result = CompiledModule("denoiser", module or Scale())
    result(torch.randn(2, 2), torch.randn(2), return_dict=False)
    return result


def accelerate(one: CompiledModule, graphs: FakeGraphs, folder: Path, kind: str = "graphs") -> Accelerator:
    """Let an accelerator serve the component with everything it has."""
    accelerator = Accelerator(kind, CPU, folder, graphs)
    accelerator.compile_all(lambda: [one], ROWS)
    return accelerator


def test_a_function_is_replayed_for_the_recorded_rows_and_runs_itself_for_others() -> None:
    graphs = FakeGraphs()
    function = GraphedFunction(double, graphs)
    record(function, 4, 1)
    for rows in (1, 2, 4, 1):
        tensors = inputs(rows)
        assert torch.equal(function(tensors)[0], double(tensors)[0])
    assert len(graphs.captures) == 2, "a call records nothing"
    assert len(graphs.replays) == 3, "two rows have no graph"


def test_outputs_are_copies_and_a_condition_is_copied_in_once() -> None:
    function = GraphedFunction(double, FakeGraphs())
    record(function, 2)
    first, (x, t) = inputs(2), inputs(2)
    before = function(first)[0]
    expected = before.clone()
    after = function([x, t])[0]
    assert torch.equal(before, expected), "the next replay overwrites nothing that was returned"
    t.add_(1.0)  # breaks the rule that inputs are never changed in place: so it shows what is not copied again
    assert torch.equal(function([x, t])[0], after)
    assert torch.allclose(function([x, t.clone()])[0], after + 1.0, atol=1e-5)
    x.add_(1.0)
    assert torch.equal(function([x, t])[0], double([x, t])[0]), "latents are always copied"


def test_each_part_has_a_stream_and_a_pool_for_all_its_graphs() -> None:
    graphs = FakeGraphs()
    parts = [GraphedFunction(double, graphs) for _ in range(3)]
    for part in parts:
        record(part, 4, 2, 1)
    used = [{(capture.stream, capture.pool) for capture in graphs.captures[i : i + 3]} for i in (0, 3, 6)]
    assert used == [{(f"stream {i}", f"pool {i}")} for i in range(3)]
    assert graphs.room_requests == 9


def test_a_replay_on_another_stream_waits_for_the_one_before() -> None:
    graphs = FakeGraphs()
    function, tensors = GraphedFunction(double, graphs), inputs(2)
    record(function, 2)
    first, second = graphs.new_stream(), graphs.new_stream()
    for stream in (first, first, second, first):
        with graphs.use_stream(stream):
            function(tensors)
    assert first.waited_for == [second.name], "the same stream is in order by itself"
    assert second.waited_for == [first.name]
    assert {name for _, name in graphs.retained} == {first.name, second.name}


def test_two_threads_never_replay_graphs_with_the_same_memory_at_once() -> None:
    graphs = FakeGraphs()
    function = GraphedFunction(double, graphs)
    record(function, 2, 1)
    graphs.during_replay = lambda: time.sleep(1e-3)
    errors: list[BaseException] = []

    def call() -> None:
        try:
            for rows in (1, 2) * 10:
                tensors = inputs(rows)
                assert torch.equal(function(tensors)[0], double(tensors)[0])
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=call) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors, errors
    assert len(graphs.replays) == 40


@pytest.mark.parametrize("where", ["begin", "inside", "end"])
def test_a_failed_capture_restores_the_stream_and_leaves_the_others_working(where: str) -> None:
    graphs = FakeGraphs()
    fails = [False]

    def function(tensors: Any) -> list[torch.Tensor]:
        if fails[0] and graphs.capturing:
            raise RuntimeError("operation not permitted when stream is capturing (inside)")
        return double(tensors)

    graphed = GraphedFunction(function, graphs)
    record(graphed, 2)
    graphs.fails_at, fails[0] = where, where == "inside"
    before = graphs.current_stream()
    with pytest.raises(CaptureFailed, match=rf"no CUDA graph of 4 rows: .*\({where}\)"):
        graphed.record(inputs(4))
    assert graphs.current_stream() is before
    assert not graphs.capturing or where == "begin"
    graphs.fails_at, fails[0] = "", False
    for rows in (2, 4):
        tensors = inputs(rows)
        assert torch.equal(graphed(tensors)[0], double(tensors)[0])
    record(graphed, 1)
    assert graphed.is_recorded(1)


def test_what_waits_for_the_device_is_refused_before_it_is_captured() -> None:
    graphs = FakeGraphs()
    module = GraphedModule(Peeking(), component(Peeking()).called.structure, graphs)  # type: ignore[union-attr]
    with pytest.raises(HostReadError, match="waits for the device"):
        module.record([torch.randn(2, 2), torch.randn(2)])
    assert not graphs.captures, "so that the process survives it with every torch"
    x = torch.randn(4)
    for read in (lambda: x[x > 0], lambda: bool(x.sum()), lambda: x.nonzero(), lambda: torch.equal(x, x)):
        with pytest.raises(HostReadError):
            check_host_reads(read, CPU)
    assert torch.equal(check_host_reads(lambda: torch.where(x > 0, x, 0.0)[:2], CPU), x.clamp(min=0)[:2])
    assert check_host_reads(lambda: bool(x.sum() < 1e9), torch.device("cuda")), "a tensor of the host may be read"
    elsewhere, other = torch.device("meta"), torch.ones(2, device="meta")
    for copy in (
        lambda: x.to(elsewhere),
        lambda: other.cpu(),
        lambda: other.tolist(),
        lambda: torch.as_tensor(np.ones(2), device=elsewhere),
        lambda: torch.ops.aten.lift_fresh(other),  # the last step of torch.tensor on a GPU
    ):
        with torch.inference_mode(), pytest.raises(HostReadError, match="copy"):
            check_host_reads(copy, elsewhere)
    assert check_host_reads(lambda: torch.full((2,), 3.0, device=elsewhere).half() * 2, elsewhere).shape == (2,)


def test_the_accelerator_records_all_rows_ahead_on_its_thread(tmp_path: Path) -> None:
    graphs, one = FakeGraphs(), component()
    accelerator = accelerate(one, graphs, tmp_path)
    assert accelerator.state == "graphs"
    assert accelerator.notes == ["graphs, 0 s after the first request"]
    assert {capture.thread for capture in graphs.captures} == {"accelerate"}
    module = one.module
    assert isinstance(module, Scale)
    python_calls, captures, checks = module.calls, len(graphs.captures), len(graphs.replays)
    assert captures == 3
    for rows in (1, 2, 4):
        x, t = torch.randn(rows, 2), torch.randn(rows)
        assert torch.equal(one(x, t, return_dict=False)[0], x * module.weight + t[:, None])
    assert module.calls == python_calls, "a replay runs no Python of the module"
    one(torch.randn(3, 2), torch.randn(3), return_dict=False)
    assert module.calls == python_calls + 1, "three rows have no graph: the module runs"
    assert (len(graphs.captures), len(graphs.replays)) == (captures, checks + 3)
    accelerator.compile_all(lambda: [one], {"denoiser": RowCounts((1, 2, 3, 4), 8)})
    one(torch.randn(3, 2), torch.randn(3), return_dict=False)
    assert len(graphs.captures) == captures + 1, "the plan has changed: one more is recorded"
    assert len({(capture.stream, capture.pool) for capture in graphs.captures}) == 1


def test_graphs_follow_weights_that_change_in_place(tmp_path: Path) -> None:
    one = component()
    accelerate(one, FakeGraphs(), tmp_path)
    x, t = torch.randn(2, 2), torch.zeros(2)
    with torch.inference_mode():
        one.module.weight.mul_(3.0)  # type: ignore[operator, union-attr]
    one.mark_weights_changed()
    assert torch.allclose(one(x, t, return_dict=False)[0], x * torch.tensor([6.0, 9.0]))


def test_weights_that_move_take_the_graphs_with_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    codec = make_codec(load("pocket", CPU, torch.bfloat16).autoencoder)
    decoder = codec.decoder
    codec.decode(torch.randn(1, codec.channels, 8, 8))
    accelerator = Accelerator("graphs", CPU, tmp_path, FakeGraphs())
    accelerator.compile_all(lambda: [decoder])
    assert decoder.backends, accelerator.notes
    generation = decoder.generation
    decoder.invalidate_backends()
    assert not decoder.backends
    signature = decoder.called
    assert signature is not None
    decoder.install(signature, Backend(lambda tensors: tensors), generation)
    assert not decoder.backends, "a recording that was begun before holds the old weights' memory"


def test_a_wrong_replay_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = component()
    replay = GraphedModule.replay
    monkeypatch.setattr(GraphedModule, "replay", lambda *arguments: (replay(*arguments)[0] * 1.1,))
    accelerator = accelerate(one, FakeGraphs(survives_failure=False), tmp_path)
    assert not one.backends
    assert accelerator.notes[0].startswith("no CUDA graphs of the denoiser: output error of ")
    assert not accelerator.restart_reason, "the capture itself went well"
    assert accelerator.state == "eager"


@pytest.mark.parametrize("survives", [True, False])
def test_a_failed_capture_is_tried_once_and_restarts_an_engine_that_does_not_survive_it(
    survives: bool, tmp_path: Path
) -> None:
    graphs, one = FakeGraphs(survives), component()
    graphs.fails_at = "end"
    accelerator = accelerate(one, graphs, tmp_path)
    assert len(graphs.captures) == 1
    assert not one.backends
    x, t = torch.randn(2, 2), torch.randn(2)
    for _ in range(3):
        assert torch.equal(one(x, t, return_dict=False)[0], one.module(x, t)[0])
        accelerator.compile_all(lambda: [one], ROWS)
    assert len(graphs.captures) == 1, "it is not tried again"
    assert [note for note in accelerator.notes if "no CUDA graphs of the denoiser" in note] == [
        "no CUDA graphs of the denoiser: no CUDA graph of 4 rows: "
        "CUDA error: operation failed due to a previous error during capture (end)"
    ]
    assert bool(accelerator.restart_reason) is not survives
    assert accelerator.enabled is survives


def test_a_build_takes_over_from_the_graphs_of_the_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.compile.accelerator.missing_requirement", lambda *_: "")
    graphs, one = FakeGraphs(), component()
    served: list[bool] = []

    def build(accelerator: Accelerator, component: CompiledModule, signature: Any, _counts: RowCounts) -> Backend:
        served.append(component.backends[signature].is_provisional)
        module = GraphedModule(component.module, signature.structure, graphs)
        return Backend(module, recorder=module)

    monkeypatch.setattr(Accelerator, "_load_or_build", build)
    accelerator = accelerate(one, graphs, tmp_path, "compile")
    assert served == [True], "the graphs serve while the build takes its time"
    assert accelerator.state == "compiled"
    assert len(graphs.captures) == 6, "the build's calls are recorded ahead too"
    assert [backend.is_provisional for backend in one.backends.values()] == [False]

    def fail(*_: object) -> Backend:
        raise RuntimeError("no kernel image")

    other = component()
    monkeypatch.setattr(Accelerator, "_load_or_build", fail)
    accelerator = accelerate(other, graphs, tmp_path, "compile")
    assert accelerator.state == "graphs", "the graphs stay where a build fails"
    assert "the denoiser runs uncompiled: no kernel image" in accelerator.notes


def test_without_graphs_the_accelerator_says_so(tmp_path: Path) -> None:
    accelerator = Accelerator("graphs", CPU, tmp_path)
    assert not accelerator.enabled
    assert accelerator.notes == ["not accelerated: CUDA graphs need an NVIDIA or AMD GPU; use --accelerate auto"]
    assert not Accelerator("eager", CPU, tmp_path, FakeGraphs()).enabled


def test_the_frame_loop_is_not_held_up_by_a_recording(tmp_path: Path) -> None:
    graphs, one = FakeGraphs(), component()
    accelerator = Accelerator("graphs", CPU, tmp_path, graphs)
    held, release = threading.Event(), threading.Event()
    make_room = graphs.make_room

    def wait() -> None:
        held.set()
        release.wait(10)
        make_room()

    graphs.make_room = wait  # type: ignore[method-assign]
    accelerator.poll([one], ROWS)
    assert held.wait(10)
    x, t = torch.randn(2, 2), torch.randn(2)
    assert torch.equal(one(x, t, return_dict=False)[0], one.module(x, t)[0]), "runs the module meanwhile"
    release.set()
    until(lambda: bool(one.backends))
    accelerator.close()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_failed_capture_leaves_a_gpu_usable() -> None:
    device = torch.device("cuda", torch.cuda.current_device())
    runtime = CudaGraphRuntime(device)
    fails = [True]

    def function(tensors: Any) -> list[torch.Tensor]:
        result = tensors[0] * 2
        if fails[0] and torch.cuda.is_current_stream_capturing():
            torch.cuda.synchronize()  # not allowed inside a capture
        return [result]

    graphed, x = GraphedFunction(function, runtime), torch.randn(2, 2, device=device)
    before = torch.cuda.current_stream(device)
    with pytest.raises(CaptureFailed):
        graphed.record([x])
    assert torch.cuda.current_stream(device) == before
    assert torch.equal(graphed([x])[0], x * 2)
    if runtime.survives_failure:
        fails[0] = False
        record_on = GraphedFunction(function, runtime)
        record_on.publish(record_on.record([x]))
        assert torch.equal(record_on([x])[0], x * 2)
        torch.cuda.empty_cache()
