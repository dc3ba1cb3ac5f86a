"""Whether this machine's processor can run torch's LSTM in bfloat16: without AVX-512 the kernel does not exist."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import nn


@cache
def lstm_runs_in_bf16() -> bool:
    """Try a small LSTM under autocast, as a plain program would."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        try:
            nn.LSTM(2, 2, dtype=torch.float32)(torch.randn(2, 1, 2, dtype=torch.float32))
        except RuntimeError:
            return False
    return True


def skip_without_bf16_lstm(uses_lstm: bool = True) -> None:
    """Skip a test whose plain program cannot run here either."""
    if uses_lstm and not lstm_runs_in_bf16():
        pytest.skip("torch has no bfloat16 LSTM for this processor")
