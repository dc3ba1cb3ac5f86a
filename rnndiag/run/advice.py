"""The recommendation in one sentence: which window would do, what it saves, and what the one in use costs.

The sentence is made here and nowhere else; screen, report, checks and docs all say it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from rnndiag.run.time_words import TimeWords
from rnndiag.run.window import EPSILON, Recommendation

ALL = 0.97
"""A systematic bias of at least this share of the minibatch's is all of it: both are estimates."""


@dataclass(frozen=True)
class InUse:
    """The window that training uses: chunks of so many steps, or as many as a backward pass goes through."""

    steps: float
    bias: float
    """Relative, on single minibatches."""
    systematic: float | None = None
    """Relative, of the mean gradient; None: not resolved."""
    chunks: bool = False
    """Whether it is the length of chunks between which the state is detached."""
    about: bool = False
    """Whether that window was not measured itself, but others before and after it."""
    measured: float | None = None
    """The longest window that was measured, where `steps` is longer: these are its biases."""


@dataclass(frozen=True)
class Advice:
    """One recurrence: a layer, or a stack whose layers are cut together."""

    name: str
    window: Recommendation
    cosine: float = math.nan
    """cos between the gradient through the window and the whole one, on minibatches."""
    length: int | None = None
    """T: as many steps have been looked at, and hold what is called full BPTT."""
    in_use: InUse | None = None
    chunk: Recommendation | None = None
    """The chunk size that would do; None: not looked for."""
    kept: bool = False
    """Whether those steps are a chunk and what was kept of the chunks before it."""
    words: TimeWords = field(default_factory=TimeWords)
    """What a time step is, where a person said so."""

    @property
    def sentence(self) -> str:
        """All of it, from the window to what the one in use costs."""
        used = self._used
        return f"{self._window}{f'; {used}' if used else ''}."

    @property
    def text(self) -> str:
        """The sentence, and how long chunks would have to be."""
        found, most = self.chunk, self.length or math.inf
        if found is None or not 1 <= self.window.steps < most:
            return self.sentence
        if not found.reached:
            needs = f"No chunks of up to {found.within} steps do that"
        elif self.length is not None and found.steps >= self.length:
            needs = "No chunks shorter than the whole sequence do"
        else:
            how = "" if found.source == self.window.source else f" (by the {found.source} bias)"
            needs = f"Chunks with a carried state need {found.steps:.0f} steps for it{how}"
        return f"{self.sentence} {needs}."

    @property
    def _whole(self) -> str:
        return f"BPTT through all {self.length} steps that were kept" if self.kept else "full BPTT"

    @property
    def _window(self) -> str:
        found, within = self.window, f"within {percent(self.window.epsilon)} of {self._whole}"
        if math.isnan(found.steps):
            return f"No window can be recommended: {found.note or 'the bias is not finite'}"
        if found.steps < 1:
            return "No gradient arrives, so there is nothing to truncate"
        if self.length == 1:
            return "There is one time step, so there is nothing to truncate"
        if not found.reached:
            return (
                f"No window within the {found.within} steps measured keeps the gradient {within}, and none can be "
                "extrapolated"
            )
        if self.length is not None and found.steps >= self.length:
            return f"Nothing shorter than all {self.length} steps keeps the gradient {within}"
        size = f"{found.steps:.0f}"
        if found.extrapolated:
            size = (
                f"at most {size} (a bound, extrapolated beyond the {found.within} steps measured)"
            )
        if found.between is not None:
            size = "about {} (between the {} and {} that were measured)".format(
                size, *found.between
            )
        size += self.words.in_brackets(found.steps)
        return f"A window of {size} keeps the gradient {within}{self._remark}{self._memory}"

    @property
    def _remark(self) -> str:
        said = []
        if math.isfinite(self.cosine) and not self.window.extrapolated:
            said.append(f"cosine {self.cosine:.3f}")
        if self.window.source == "minibatch":
            said.append("on minibatches: the systematic part is not resolved")
        return f" ({'; '.join(said)})" if said else ""

    @property
    def _memory(self) -> str:
        if not self.length:
            return ""
        share = percent(min(1.0, self.window.steps / self.length))
        most, whose = "at most " * self.window.extrapolated, "those" if self.kept else "the"
        return f" and holds {most}{share} of {whose} steps in memory"

    @property
    def _used(self) -> str:
        used = self.in_use
        if used is None or self.length == 1 or self.window.steps < 1:
            return ""
        if not used.chunks and self.length is not None and used.steps >= self.length:
            return f"you hold all {used.steps:.0f}"
        if math.isnan(used.bias):
            return ""
        many = f"{used.steps:.0f}"
        off = f"your {f'chunks of {many} are' if used.chunks else f'{many} is'} off by "
        off += f"{'about ' * (used.about and used.measured is None)}{percent(used.bias)}"
        if used.measured is not None:
            off += f" (as measured at {used.measured:.0f})"
        if used.systematic is None:
            return f"{off} on a minibatch, and how much of that is systematic is not resolved"
        if used.systematic > ALL * used.bias:
            return f"{off}, all of it systematic"
        return f"{off}, of which {percent(used.systematic)} is systematic"


def percent(share: float) -> str:
    """31 %, 3.1 %, 0.31 %; large ones with commas."""
    if not math.isfinite(share):
        return "an infinite share" if share > 0 else "an unknown share"
    value = 100 * share
    digits = 0 if value >= 9.95 or value == 0 else 1 if value >= 0.95 else 2
    return f"{value:,.{digits}f} %"


__all__ = ["EPSILON", "Advice", "InUse", "percent"]
