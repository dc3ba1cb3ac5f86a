"""The programs of the trial (benchmarks/trial), for tests that train some of them."""

from __future__ import annotations

from benchmarks.trial.cures import apply as apply
from benchmarks.trial.fit import train as train
from benchmarks.trial.program import Program as Program
