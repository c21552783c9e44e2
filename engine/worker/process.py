"""The engine process from its start to its exit."""

from __future__ import annotations

import gc
import signal
from multiprocessing.connection import Connection

import torch

from engine.models.hf_imports import import_quietly
from engine.runtime.allocator import retain_freed_memory
from engine.runtime.threads import limit_to_one_thread
from engine.shared.mailbox import Mailboxes
from engine.shared.options import EngineOptions
from engine.shared.parameter import InvalidValue
from engine.shared.snapshot import Snapshot
from engine.worker.loop import Failed, Worker
from engine.worker.reload import free_memory, make_stream


def prepare() -> None:
    """Does once what every start does, with the built-in model: the real start finds everything imported. Beside another stream."""
    threads = torch.get_num_threads()
    limit_to_one_thread()
    make_stream(Snapshot({"/size": "64x64", "/steps": 1}), torch.device("cpu"), EngineOptions("cpu")).close()
    free_memory()
    torch.set_num_threads(threads)


def run(pipe: Connection, boxes: Mailboxes, options: EngineOptions, snapshot: Snapshot) -> None:
    """The whole life of the process. Sends ("ready" | "refused" | "status" | "note" | "reloaded" | "kept" | "error", payload)."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the bridge's to handle
    retain_freed_memory()
    try:
        import_quietly()
        gc.freeze()  # the libraries: a collection that looked at them all would cost a frame
        worker = Worker(pipe, boxes, options, snapshot)
    except InvalidValue as error:
        pipe.send(("refused", str(error)))
        return
    except Exception as error:  # whatever it is: the next process may fare better
        lines = str(error).strip().splitlines() or [type(error).__name__]
        pipe.send(("error", f"the engine could not begin: {lines[0]}"))
        raise SystemExit(1) from None
    gc.collect()
    gc.freeze()  # and the model
    gc.enable()
    try:
        worker.loop()
        worker.accelerator.close()
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass  # the bridge is gone, and so are we
    except Failed as error:
        pipe.send(("error", f"giving up after {worker.failures} failed frames: {error}"))
        raise SystemExit(1) from None
