"""Jobs: which signature of a component has graphs to be recorded, and which a backend to be built."""

from __future__ import annotations

from engine.compile import tensorrt
from engine.compile.dispatch import Backend, CallSignature, CompiledModule, RowCounts


def find_unrecorded(component: CompiledModule, counts: RowCounts) -> CallSignature | None:
    """Return the signature of the component's calls if CUDA graphs of them are still to be recorded."""
    signature = component.called
    if signature is None or signature in component.unrecordable:
        return None
    backend = component.backends.get(signature)
    if backend is None:
        return signature
    return signature if unrecorded_counts(backend, counts) else None


def find_uncompiled(component: CompiledModule, counts: RowCounts) -> CallSignature | None:
    """Return the signature of the component's calls if a compiled backend of them is still to be built."""
    # A call that was running while its signature was served or rejected still requests it.
    if component.requested not in (None, *component.backends, *component.rejected):
        return component.requested
    signature = component.called
    backend = component.backends.get(signature) if signature is not None else None
    if backend is None or signature in component.rejected:
        return None
    is_too_small = backend.max_rows < min(max(counts.present), tensorrt.MAX_ROWS)
    return signature if backend.is_provisional or is_too_small else None


def unrecorded_counts(backend: Backend, counts: RowCounts) -> list[int]:
    """Return the numbers of rows that have no graph yet, the largest first; none for a backend without graphs."""
    recorder = backend.recorder
    if recorder is None:
        return []
    return sorted((rows for rows in set(counts.present) if not recorder.is_recorded(rows)), reverse=True)
