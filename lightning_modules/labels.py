"""Names of the time steps, for the figures: functions for the callback's `labels`."""

from __future__ import annotations

from lightning_modules.batch import Batch
from lightning_modules.tasks.banana import VOCABULARY
from lightning_modules.tasks.hello import ALPHABET


def banana(batch: Batch) -> list[str]:
    """The words of the first sentence."""
    return [VOCABULARY[token] for token in batch.inputs[:, 0].tolist()]


def hello(batch: Batch) -> list[str]:
    """The letters that come in."""
    return [ALPHABET[token] for token in batch.inputs[:, 0].tolist()]
