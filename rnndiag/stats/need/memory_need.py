"""Result of `rnndiag.memory_need`."""

from __future__ import annotations

from dataclasses import dataclass

from rnndiag.stats.need.numbers import NeedNumbers
from rnndiag.stats.need.sentences import further_sentences, sentence_of
from rnndiag.stats.need.verdict import Lead, lead_of


@dataclass(frozen=True)
class MemoryNeed(NeedNumbers):
    """Does the task need more memory than the gradient reaches, or than the window allows?

    Example:
        >>> need = rnndiag.memory_need(model, batches, loss_fn, beyond=20)
        >>> need.lead
        'needed_beyond'
    """

    @property
    def lead(self) -> Lead:
        """The leading verdict."""
        return lead_of(self)

    @property
    def sentence(self) -> str:
        """The leading verdict as one sentence with its numbers."""
        return sentence_of(self, self.lead)

    @property
    def further_sentences(self) -> tuple[str, ...]:
        """Further verdicts that hold, and the limits of the answer."""
        return further_sentences(self, self.lead)

    def __str__(self) -> str:
        return "\n".join([self.sentence, *self.further_sentences])
