"""A recording: all measurements of one training step, with the verdict of its proofs."""

from __future__ import annotations

import time as clock
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from rnndiag.errors import BadArgument, RunUnreadable
from rnndiag.store.layer_names import layers_among
from rnndiag.store.measurement import Measurement
from rnndiag.store.quantities import MODEL
from rnndiag.store.text import html_table, meant

Verdict = Literal["exact", "inexact", "unverified", "open"]
VERDICTS: tuple[Verdict, ...] = ("exact", "open", "unverified", "inexact")
"""Verdicts from best to worst: pooling ranks takes the worst."""


@dataclass(frozen=True, eq=False, repr=False)
class Recording:
    """All measurements of one step of one phase on one rank.

    `verdict` is what the proofs say of them; open: contributions are exact, but reach and windows are withdrawn, as
    something leads around a loop's state. `reasons` say why per layer where it is not `exact`; `notes` are further
    facts as JSON. `ranks` names the ranks it was pooled over.
    """

    step: int
    phase: str = "train"
    rank: int = 0
    time: float = field(default_factory=clock.time)
    epoch: int | None = None
    batch: int | None = None
    verdict: Verdict = "unverified"
    reasons: Mapping[str, str] = field(default_factory=dict)
    measurements: tuple[Measurement, ...] = ()
    notes: Mapping[str, Any] = field(default_factory=dict)
    ranks: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= int(self.step) < 2**63:
            raise BadArgument(f"A recording cannot have step {self.step}.", "Count steps from 0.")
        if self.verdict not in VERDICTS:
            raise BadArgument(
                f"A recording cannot have the verdict {self.verdict!r}.",
                f"It is one of {VERDICTS}.",
            )
        object.__setattr__(self, "step", int(self.step))
        object.__setattr__(self, "measurements", tuple(self.measurements))
        if not self.ranks:
            object.__setattr__(self, "ranks", (self.rank,))

    def __repr__(self) -> str:
        many = f"{len(self.measurements)} measurements of {len(self.layers)} layers"
        return f"<recording of step {self.step} ({self.phase}), {self.verdict}: {many}>"

    def _repr_html_(self) -> str:
        """HTML for notebooks: the layers, and the number of quantities of each."""
        rows = [
            (layer, ", ".join(m.name for m in self.measurements if m.layer == layer))
            for layer in (*self.layers, MODEL)
        ]
        return html_table(
            repr(self)[1:-1], ("layer", "quantities"), [row for row in rows if row[1]]
        )

    @cached_property
    def _index(self) -> dict[tuple[str, str], Measurement]:
        return {(m.name, m.layer): m for m in self.measurements}

    @property
    def layers(self) -> tuple[str, ...]:
        """Layer runs with at least one measurement, in the order recorded; neither the model nor stacks."""
        return layers_among(m.layer for m in self.measurements)

    @property
    def quantities(self) -> tuple[str, ...]:
        """Names of the quantities measured, in the order recorded."""
        return tuple(dict.fromkeys(m.name for m in self.measurements))

    def __contains__(self, key: object) -> bool:
        return (key if isinstance(key, tuple) else (key, MODEL)) in self._index

    def get(self, quantity: str, layer: str = MODEL) -> Measurement | None:
        """The measurement, or None if there is none."""
        return self._index.get((quantity, layer))

    def __getitem__(self, key: tuple[str, str] | str) -> Measurement:
        """`recording["credit_profile", "rnn.l0"]`; without a layer, the whole model's."""
        quantity, layer = key if isinstance(key, tuple) else (key, MODEL)
        found = self._index.get((quantity, layer))
        if found is None:
            hint = meant(quantity, self.quantities) if quantity not in self.quantities else ""
            raise RunUnreadable(
                f"The recording of step {self.step} has no {quantity!r} of {layer!r}.",
                f"{hint}It has {', '.join(self.quantities) or 'nothing'}, of {', '.join(self.layers) or 'the model'}.",
            )
        return found
