"""Facts on the training beyond single layers: optimizer, clipping, loader, structural findings, first fault."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from rnndiag.health.diagnosis.layer_evidence import NOTHING, Dated
from rnndiag.health.diagnosis.recorded import Recorded
from rnndiag.store.text import mapping

SCALE_FREE = ("ada", "rms", "rprop", "lamb", "lion", "sign", "muon", "shampoo", "soap", "lars")
"""Optimizers whose steps do not depend on the gradient's scale contain one of these in their name."""


@dataclass(frozen=True)
class Setup:
    """The optimizer and the recurrent weights at the start of the fit."""

    optimizer: str
    scale_free: bool
    """Whether scaling the gradient by a constant leaves the optimizer's steps unchanged."""
    rate: float
    weight_decay: float
    clip: float | None
    frozen: Mapping[str, str]
    """Frozen layer -> the knob that would let it train, requires_grad or add_to_optimizer."""
    layers: tuple[str, ...]
    """All recurrent layers of the model."""
    monitored: str
    """The metric that a callback monitors; empty if none does."""
    monitored_mode: str
    """min, max, or empty if unknown."""
    scaled_gradients: bool
    """Whether a loss scaler is used, which makes non-finite gradients a normal event."""


def setup_of(recorded: Recorded) -> Setup:
    """Read the setup from the provenance; runs of earlier versions have none, and no frozen layers then."""
    training = mapping(recorded.provenance, "training")
    trainer = mapping(recorded.provenance, "trainer")
    held = training.get("optimizers")
    optimizers = [mapping(one) for one in held] if isinstance(held, list | tuple) else []
    recurrent = {str(k): mapping(v) for k, v in mapping(training, "recurrent").items()}
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


RATE_GONE = 0.01
"""A learning rate below this share of its highest value moves weights no more."""


@dataclass(frozen=True)
class StepSizes:
    """|Δθ| / |θ| of the recorded optimizer steps."""

    recurrent: Mapping[str, tuple[Dated, ...]]
    """Layer -> relative steps."""
    other: tuple[Dated, ...]
    clip_ratio: Dated
    """Gradient norm after clipping over that before: median over recordings."""
    first_norm: Dated
    """Gradient norm of the first recorded step."""
    rates: Mapping[int, float]
    """Training step -> learning rate."""
    rate_gone: Dated
    """Learning rate at the first step from which on it stays below RATE_GONE of its highest value; NaN if there is
    none."""
    highest_rate: Dated

    def path(self, layer: str) -> float:
        """∫ |Δθ| / |θ| over the fit by the trapezoidal rule: the length of the weights' path relative to their size."""
        return _path(self.recurrent.get(layer, ()))

    @property
    def other_path(self) -> float:
        """The same path length of all weights that are not recurrent."""
        return _path(self.other)

    @property
    def longest_path(self) -> float:
        """The longest path of any layer; NaN if nothing was recorded."""
        known = [p for layer in self.recurrent if not math.isnan(p := self.path(layer))]
        return max(known, default=math.nan)

    def largest(self, up_to: int) -> tuple[Dated, str]:
        """The largest relative step of a recurrent layer up to training step `up_to`, and its layer."""
        found = [
            (one, layer)
            for layer, row in self.recurrent.items()
            for one in row
            if one.step <= up_to and math.isfinite(one.value)
        ]
        return max(found, key=lambda pair: pair[0].value, default=(NOTHING, ""))

    def reference(self) -> Dated:
        """The relative step used to set a learning rate: the largest over all layers of the first recorded steps."""
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
    """The recorded step sizes; `layers` holds the relative steps of each layer."""
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
    highest, gone = _rate_gone(*recorded.history("history_learning_rate"))
    return StepSizes(layers, other, clip, norms[0] if norms else NOTHING, rates, gone, highest)


def _rate_gone(steps: np.ndarray, rates: np.ndarray) -> tuple[Dated, Dated]:
    """The highest learning rate, and the rate at the step from which on it stays below RATE_GONE of that."""
    known = np.isfinite(rates)
    steps, rates = steps[known], rates[known]
    if not len(rates) or not rates.max() > 0:
        return NOTHING, NOTHING
    top = int(np.argmax(rates))
    kept = np.flatnonzero(rates >= RATE_GONE * rates[top])
    highest, first = Dated(float(rates[top]), int(steps[top])), int(kept[-1]) + 1
    if first == len(rates):
        return highest, NOTHING
    return highest, Dated(float(rates[first]), int(steps[first]))


@dataclass(frozen=True)
class Jump:
    """A step whose gradient norm was many times its running median."""

    step: int
    ratio: float
    usual: float
    layer: str


def jumps(recorded: Recorded) -> tuple[Jump, ...]:
    """The recorded jumps."""
    found = []
    for outline in recorded.outlines:
        note = mapping(outline.notes, "black_box")
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
    """Whether the batch holds finite numbers only."""
    sentence: str
    place: str = ""
    """Where it began in the recurrent layers: inputs, states, a gradient; empty if unknown."""


def first_fault(recorded: Recorded, loss_step: int | None, setup: Setup) -> FirstFault | None:
    """The first fault, from the recorded accidents and from the losses of all steps."""
    notes = [
        note
        for outline in recorded.outlines
        if (note := mapping(outline.notes, "black_box")).get("kind") in ("loss", "gradient")
    ]
    if setup.scaled_gradients:
        notes = [note for note in notes if note.get("kind") == "loss"]
    notes = [note for note in notes if math.isfinite(_number(note.get("step")))]
    first = min(notes, key=lambda note: _number(note["step"]), default={})
    steps = [loss_step] if loss_step is not None else []
    steps += [int(first["step"])] if first else []
    if not steps:
        return None
    # the first fault was in a step that was not examined
    if not first or int(first["step"]) > min(steps) + 1:
        return FirstFault(min(steps), True, "")
    return FirstFault(
        min(steps),
        bool(first.get("batch_finite", True)),
        str(first.get("sentence", "")),
        str(first.get("what", "")),
    )


def structural_findings(recorded: Recorded) -> dict[str, tuple[str, str]]:
    """Name of a failed preflight check -> (message, layer)."""
    found: dict[str, tuple[str, str]] = {}
    for outline in recorded.outlines:
        noted = outline.notes.get("preflight")
        for note in noted if isinstance(noted, list | tuple) else ():
            plain = mapping(note)
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


def _number(value: object) -> float:
    try:
        return float(value) if isinstance(value, int | float) else math.nan
    except OverflowError:  # a whole number of more digits than a float has
        return math.nan
