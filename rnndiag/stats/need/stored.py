"""Converts a `MemoryNeed` to stored quantities and back."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Protocol

import numpy as np

from rnndiag.stats.need.memory_need import MemoryNeed
from rnndiag.stats.need.numbers import LIMITS, Gain, Group, LagGain, Use
from rnndiag.store.measurement import Measurement
from rnndiag.store.quantities import NEED_FACTS

GROUP, PART, USE, FACT = "need_group", "need_part", "need_use", "need_fact"


class HasMeasurements(Protocol):
    """Anything with measurements, such as a recording."""

    @property
    def measurements(self) -> tuple[Measurement, ...]:
        """All that was measured."""


def need_measurements(need: MemoryNeed) -> tuple[Measurement, ...]:
    """A need as stored quantities. Its notes are not among them: they go into the notes of the recording."""
    present = (*need.present, need.present_p, math.nan)
    facts = {
        **{name: getattr(need, name) for name in NEED_FACTS if name != "limit"},
        "used_memory": math.nan if need.used_memory is None else need.used_memory,
        "limit": LIMITS.index(need.limit),
    }

    def of(name: str, values: object) -> Measurement:
        # Float64 as it is: the verdict of the stored numbers is the verdict of the measured ones.
        return Measurement.of(
            name, np.asarray(values, dtype=np.float64), need.layer, keep_dtype=True
        )

    return (
        of(GROUP, np.asarray(need.groups, dtype=np.float64).reshape(-1, 8)),
        of(PART, [present, need.within, need.further]),
        of(USE, np.asarray(need.use, dtype=np.float64).reshape(-1, 4)),
        of(FACT, [facts[name] for name in NEED_FACTS]),
    )


def needs_in(recordings: Iterable[HasMeasurements]) -> tuple[MemoryNeed, ...]:
    """The latest need of each layer in these recordings."""
    found: dict[str, dict[str, Measurement]] = {}
    for recording in recordings:
        for one in recording.measurements:
            if one.name in (GROUP, PART, USE, FACT):
                found.setdefault(one.layer, {})[one.name] = one
    return tuple(need_of(layer, parts) for layer, parts in found.items() if len(parts) == 4)


def need_of(layer: str, parts: Mapping[str, Measurement]) -> MemoryNeed:
    """Rebuild the `MemoryNeed` of a layer; `parts` maps the names of its four stored quantities to measurements."""
    facts = dict(zip(NEED_FACTS, parts[FACT].values.tolist(), strict=True))
    present, within, further = parts[PART].values.tolist()
    used = facts["used_memory"]
    return MemoryNeed(
        layer=layer,
        groups=tuple(
            Group(_count(low), _count(high), gain, lower, upper, p, over, bool(significant))
            for low, high, gain, lower, upper, p, over, significant in parts[GROUP].values.tolist()
        ),
        present=Gain(*present[:3]),
        present_p=present[3],
        within=LagGain(*within),
        further=LagGain(*further),
        use=tuple(Use(_count(inputs), *rest) for inputs, *rest in parts[USE].values.tolist()),
        used_memory=None if math.isnan(used) else _count(used),
        limit=LIMITS[_count(facts["limit"]) % len(LIMITS)],
        loss=facts["loss"],
        floor=facts["floor"],
        reach=facts["reach"],
        peak_lag=facts["peak_lag"],
        autocorrelation=facts["autocorrelation"],
        gap=facts["gap"],
        plain_steps=facts["plain_steps"],
        burn_in=_count(facts["burn_in"]),
        beyond=_count(facts["beyond"]),
        max_lag=_count(facts["max_lag"]),
        sequences=_count(facts["sequences"]),
        n_sequences=_count(facts["n_sequences"]),
        rows=_count(facts["rows"]),
    )


def _count(value: float) -> int:
    """A stored count as int; 0 for values that are no count (a damaged file)."""
    return int(value) if math.isfinite(value) else 0
