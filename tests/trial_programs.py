"""The programs of the trial (benchmarks/trial), for tests that train some of them."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

from trial.cures import apply as apply
from trial.fit import train as train
from trial.program import Program as Program
