"""The engine process from its start to its exit."""

from __future__ import annotations

import gc
import signal
from multiprocessing.connection import Connection

import torch

from engine.models.hf_imports import import_quietly
from engine.runtime.allocator import retain_freed_memory
from engine.runtime.rocm import limit_kernel_search
from engine.runtime.threads import limit_to_one_thread
from engine.shared.errors import first_line
from engine.shared.mailbox import Mailboxes
from engine.shared.messages import EngineError, ModelRejected, StartFailed
from engine.shared.options import EngineOptions
from engine.shared.parameter import InvalidValue
from engine.shared.snapshot import Snapshot
from engine.worker.failures import EngineFailure, free_memory
from engine.worker.loop import Worker
from engine.worker.reload import make_stream
from engine.worker.unused_card import note_unused_card


def prepare() -> None:
    """Run what every start does once, with the built-in model, so that the real start finds everything imported.

    A standby process calls it, on one thread: another process is streaming meanwhile.
    """
    threads = torch.get_num_threads()
    limit_to_one_thread()
    make_stream(Snapshot({"/size": "64x64", "/steps": 1}), torch.device("cpu"), EngineOptions("cpu")).close()
    free_memory()
    torch.set_num_threads(threads)


def run(pipe: Connection, boxes: Mailboxes, options: EngineOptions, snapshot: Snapshot) -> None:
    """Run the engine until the bridge stops it or goes away. Sends the messages of ``engine.shared.messages``.

    Raises SystemExit(1) where the engine cannot go on in this process.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the bridge's to handle
    retain_freed_memory()
    limit_kernel_search()
    try:
        import_quietly()
        gc.freeze()  # the libraries: a collection over all of them would cost a frame
        worker = Worker(pipe, boxes, options, snapshot)
    except InvalidValue as error:
        pipe.send(ModelRejected(str(error)))
        return
    except BaseException as error:  # the next process may fare better; also a panic of a library written in Rust
        pipe.send(StartFailed(f"the engine could not start: {first_line(error)}"))
        raise SystemExit(1) from None
    gc.collect()
    gc.freeze()  # the model
    gc.enable()
    note_unused_card(options.device, worker.stream.model.device, worker.accelerator.notes)
    try:
        worker.loop()
        worker.close()
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass  # the bridge is gone
    except EngineFailure as error:
        pipe.send(EngineError(f"giving up after {worker.failures} failed frames: {error}"))
        raise SystemExit(1) from None
    except Exception as error:
        pipe.send(EngineError(f"the engine failed: {first_line(error)}"))
        raise
