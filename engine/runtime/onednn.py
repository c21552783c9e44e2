"""oneDNN: what this build of torch and this processor have of it. The wheels for Apple silicon come without it
(tested by removing the operators; not run there).
"""

from __future__ import annotations

import torch

_SUPPORT_CHECKS = {torch.bfloat16: "_is_mkldnn_bf16_supported", torch.float16: "_is_mkldnn_fp16_supported"}


def has_operators(*names: str) -> bool:
    """Return whether oneDNN is part of this build, with all operators of these ``names`` in ``torch.ops.mkldnn``."""
    return torch.backends.mkldnn.is_available() and all(hasattr(torch.ops.mkldnn, name) for name in names)


def has_kernels(dtype: torch.dtype) -> bool:
    """Return whether oneDNN computes in ``dtype`` on this processor; in float32 it does wherever it is there."""
    if dtype not in _SUPPORT_CHECKS:
        return has_operators()
    check = _SUPPORT_CHECKS[dtype]
    return has_operators(check) and bool(getattr(torch.ops.mkldnn, check)())
