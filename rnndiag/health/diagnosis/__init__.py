"""The diagnosis of a run: the state of the model, ranked causes, and a remedy for each."""

from rnndiag.health.diagnosis.diagnose_run import diagnose
from rnndiag.health.diagnosis.diagnosis import (
    CAUSES,
    KNOBS,
    STATES,
    Cause,
    Diagnosis,
    Evidence,
    Remedy,
)

__all__ = ["CAUSES", "KNOBS", "STATES", "Cause", "Diagnosis", "Evidence", "Remedy", "diagnose"]
