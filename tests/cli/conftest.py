"""Every test here may `write` a run."""

from __future__ import annotations

from pathlib import Path

import pytest
from sample_run import Write, writes_below


@pytest.fixture
def write(tmp_path: Path) -> Write:
    return writes_below(tmp_path)
