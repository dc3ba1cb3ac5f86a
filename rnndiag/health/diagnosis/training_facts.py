"""What a run says of its training beside the layers: optimizer, clipping, loader, structural findings, first fault."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from rnndiag.health.diagnosis.layer_evidence import NOTHING, Dated
from rnndiag.health.diagnosis.recorded import Recorded

SCALE_FREE = ("ada", "rms", "rprop", "lamb", "lion", "sign", "muon", "shampoo", "soap", "lars")
"""Optimizers whose steps do not depend on the size of the gradient hold one of these in their name."""


@dataclass(frozen=True)
class Setup:
    """The optimizer and the recurrent weights as the fit began."""

    optimizer: str
    scale_free: bool
    """Whether a constant factor of the gradient leaves its steps as they are."""
    rate: float
    weight_decay: float
    clip: float | None
    frozen: Mapping[str, str]
    """Layer -> requires_grad | add_to_optimizer, the knob that would let it train."""
    layers: tuple[str, ...]
    """All recurrent layers of the model."""
    monitored: str
    """The metric that a callback monitors; empty where none does."""
    monitored_mode: str
    """min, max, or empty where it is not known."""
    scaled_gradients: bool
    """Whether a loss scaler makes gradients that are not finite a part of the routine."""


def setup_of(recorded: Recorded) -> Setup:
    """Read from the provenance; a run of an earlier version has none, and nothing is frozen there."""
    training = _mapping(recorded.provenance.get("training"))
    trainer = _mapping(recorded.provenance.get("trainer"))
    held = training.get("optimizers")
    optimizers = [_mapping(one) for one in held] if isinstance(held, list | tuple) else []
    recurrent = {str(k): _mapping(v) for k, v in _mapping(training.get("recurrent")).items()}
    frozen = {}
    for layer, facts in recurrent.items():
        if facts.get("trainable", 1) == 0:
            frozen[layer] = "requires_grad"
        elif optimizers and facts.get("in_optimizer", 1) == 0:
            frozen[layer] = "add_to_optimizer"
    first = next(iter(recurrent.values()), {})
    used = first.get("optimizer", 0)
    own = optimizers[used] if isinstance(used, int) and used < len(optimizers) else {}
    kind = str(own.get("kind", ""))
    clip = _number(trainer.get("clip"))
    return Setup(
        optimizer=kind,
        scale_free=any(word in kind.lower() for word in SCALE_FREE),
        rate=_number(first.get("lr", own.get("lr"))),
        weight_decay=max((_number(f.get("weight_decay")) for f in recurrent.values()), default=0.0),
        clip=clip if clip > 0 else None,
        frozen=frozen,
        layers=tuple(recurrent),
        monitored=str(trainer.get("monitor", "")),
        monitored_mode=str(trainer.get("monitor_mode", "")),
        scaled_gradients=str(trainer.get("precision", "")).startswith("16"),
    )


@dataclass(frozen=True)
class StepSizes:
    """|Δθ| / |θ| of the recorded optimizer steps."""

    recurrent: Mapping[str, tuple[Dated, ...]]
    """By layer."""
    other: tuple[Dated, ...]
    clip_ratio: Dated
    """Norm of the gradients after clipping over that before: median of the recordings."""
    first_norm: Dated
    """Gradient norm of the first recorded step."""
    rates: Mapping[int, float]
    """Step -> learning rate."""

    def path(self, layer: str) -> float:
        """∫ |Δθ| / |θ| over the fit by trapezoids: the length of the way that the weights went, in their own size."""
        return _path(self.recurrent.get(layer, ()))

    @property
    def other_path(self) -> float:
        """The same of all weights that are not recurrent."""
        return _path(self.other)

    @property
    def longest_path(self) -> float:
        """Of all layers the longest; NaN where nothing was recorded."""
        known = [p for layer in self.recurrent if not math.isnan(p := self.path(layer))]
        return max(known, default=math.nan)

    def largest(self, up_to: int) -> tuple[Dated, str]:
        """The largest ratio of a recurrent layer up to this step, and its layer."""
        found = [
            (one, layer)
            for layer, row in self.recurrent.items()
            for one in row
            if one.step <= up_to and math.isfinite(one.value)
        ]
        return max(found, key=lambda pair: pair[0].value, default=(NOTHING, ""))

    def reference(self) -> Dated:
        """The ratio that a learning rate is set by: of the first recorded steps the largest, over all layers."""
        first = [row[0] for row in self.recurrent.values() if row]
        known = [one for one in first if math.isfinite(one.value) and one.value > 0]
        if known:
            return max(known, key=lambda one: one.value)
        return self.largest(2**62)[0]


def _path(row: tuple[Dated, ...]) -> float:
    if not row:
        return math.nan
    if len(row) == 1:
        return row[0].value
    steps = np.array([one.step for one in row], np.float64)
    # A step may come out infinite: a finite stand-in keeps the sum free of inf - inf.
    values = np.nan_to_num(np.array([one.value for one in row]), posinf=1e9)
    values = np.minimum(values, 1e9)
    return float(np.sum(0.5 * (values[1:] + values[:-1]) * np.diff(steps)))


def step_sizes(recorded: Recorded, layers: Mapping[str, tuple[Dated, ...]]) -> StepSizes:
    """The sizes of the recorded steps; `layers` holds the ratios of each layer."""
    other = tuple(Dated(row.number, row.step) for row in recorded.rows("other_update_ratio"))
    before = {row.step: row.number for row in recorded.rows("total_gradient_norm")}
    after = {row.step: row.number for row in recorded.rows("stepped_gradient_norm")}
    ratios = {
        step: after[step] / norm
        for step, norm in before.items()
        if step in after and norm > 0 and math.isfinite(after[step] / norm)
    }
    clip = Dated(float(np.median(list(ratios.values()))), max(ratios)) if ratios else NOTHING
    norms = [Dated(norm, step) for step, norm in before.items() if math.isfinite(norm) and norm > 0]
    rates = {row.step: row.number for row in recorded.rows("learning_rate")}
    return StepSizes(layers, other, clip, norms[0] if norms else NOTHING, rates)


@dataclass(frozen=True)
class Jump:
    """A step whose gradient norm was many times its running median."""

    step: int
    ratio: float
    usual: float
    layer: str


def jumps(recorded: Recorded) -> tuple[Jump, ...]:
    """The jumps that were recorded."""
    found = []
    for outline in recorded.outlines:
        note = _mapping(outline.notes.get("black_box"))
        norm, usual = _number(note.get("norm")), _number(note.get("usual_norm"))
        if note.get("kind") == "jump" and usual > 0 and math.isfinite(norm):
            layer = str(note.get("layer", ""))
            found.append(Jump(outline.step, norm / usual, usual, layer))
    return tuple(found)


@dataclass(frozen=True)
class FirstFault:
    """The first step whose loss or gradient is not finite."""

    step: int
    data_finite: bool
    """False: the batch itself holds numbers that are not finite."""
    sentence: str
    place: str = ""
    """Where it began in the recurrent layers: inputs, states, a gradient; empty where that was not seen."""


def first_fault(recorded: Recorded, loss_step: int | None, setup: Setup) -> FirstFault | None:
    """From the accidents that were recorded, and from the losses of all steps."""
    told = [
        note
        for outline in recorded.outlines
        if isinstance(note := outline.notes.get("black_box"), Mapping)
        and note.get("kind") in ("loss", "gradient")
    ]
    if setup.scaled_gradients:
        told = [note for note in told if note.get("kind") == "loss"]
    told = [note for note in told if math.isfinite(_number(note.get("step")))]
    first = min(told, key=lambda note: _number(note["step"]), default={})
    steps = [loss_step] if loss_step is not None else []
    steps += [int(first["step"])] if first else []
    if not steps:
        return None
    if not first or int(first["step"]) > min(steps) + 1:  # the first fault itself was not looked at
        return FirstFault(min(steps), True, "")
    return FirstFault(
        min(steps),
        bool(first.get("batch_finite", True)),
        str(first.get("sentence", "")),
        str(first.get("what", "")),
    )


def structural_findings(recorded: Recorded) -> dict[str, tuple[str, str]]:
    """Check of the preflight -> (message, layer), of those that did not pass."""
    found: dict[str, tuple[str, str]] = {}
    for outline in recorded.outlines:
        noted = outline.notes.get("preflight")
        for note in noted if isinstance(noted, list | tuple) else ():
            plain = _mapping(note)
            if plain.get("status") in ("fail", "warn"):
                check = str(plain.get("check", "")).removeprefix("preflight: ")
                found.setdefault(
                    check, (str(plain.get("message", "")), str(plain.get("layer", "")))
                )
    return found


def trust(recorded: Recorded) -> tuple[int, ...]:
    """Steps of the recordings whose proof failed though all of their numbers are finite."""
    bad = {
        row.step
        for layer in recorded.layers
        for quantity in ("nonfinite_states", "nonfinite_adjoints")
        for row in recorded.rows(quantity, layer)
        if np.nansum(row.values) > 0
    }
    bad |= {
        row.step for row in recorded.rows("total_gradient_norm") if not math.isfinite(row.number)
    }
    return tuple(
        one.step for one in recorded.outlines if one.verdict == "inexact" and one.step not in bad
    )


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _number(value: object) -> float:
    try:
        return float(value) if isinstance(value, int | float) else math.nan
    except OverflowError:  # a whole number of more digits than a float has
        return math.nan
