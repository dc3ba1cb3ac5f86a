"""What tests of the callback get: a strict callback that writes where pytest keeps its files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import rnndiag


@pytest.fixture
def diagnostics(tmp_path: Path) -> Callable[..., Any]:
    """Makes a callback: records every step, raises its own faults, prints and reports nothing."""

    def make(name: str = "run", **options: Any) -> Any:
        chosen = {
            "every_n_steps": None if {"budget", "schedule"} & options.keys() else 1,
            "strict": True,
            "report": False,
            **options,
        }
        return rnndiag.GradientDiagnostics(tmp_path / name, **chosen)

    return make
