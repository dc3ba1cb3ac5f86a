"""From exact numbers to the right diagnosis: state of the model, ranked causes, a remedy for each."""

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
