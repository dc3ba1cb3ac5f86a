"""Scalars of a recording for the trainer's loggers, for callbacks that monitor a metric, and for the progress bar."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from rnndiag.recorder.facts.training_loop import TrainingLoop
from rnndiag.recorder.settings import LogChoice
from rnndiag.stats.reach import decay, reach
from rnndiag.stats.window import smallest_window
from rnndiag.store.measurement import Measurement
from rnndiag.store.recording import Recording


def _length(recording: Recording, layer: str) -> int | None:
    valid = recording.get("valid_samples", layer)
    return None if valid is None else int(valid.values.size)


def _profile(recording: Recording, layer: str) -> np.ndarray | None:
    found = recording.get("credit_profile", layer)
    return None if found is None else found.sel(profile_stat="profile").values


def _reach(recording: Recording, layer: str) -> float:
    profile = _profile(recording, layer)
    return math.nan if profile is None else reach(profile, steps=_length(recording, layer)).value


def _decay(recording: Recording, layer: str) -> float:
    profile = _profile(recording, layer)
    return math.nan if profile is None else decay(profile).value


def _window(recording: Recording, layer: str) -> float:
    bias = recording.get("window_bias", layer)
    if bias is None:
        return math.nan
    return smallest_window(
        bias.values, windows=bias.positions("lag"), steps=_length(recording, layer)
    ).steps


def _largest(found: Measurement | None) -> float:
    if found is None or not found.values.size:
        return math.nan
    return float(np.max(found.values))


def _lambda1(recording: Recording, layer: str) -> float:
    found = recording.get("lyapunov_exponents", layer)
    return math.nan if found is None else float(found.sel(part_stat="value").values.max())


SCALARS: dict[str, Callable[[Recording, str], float]] = {
    "reach": _reach,
    "decay": _decay,
    "window": _window,
    "lambda1": _lambda1,
    "rho": lambda recording, layer: _largest(recording.get("spectral_radius", layer)),
    "residual": lambda recording, layer: _largest(recording.get("residual", layer)),
}
"""Name under `rnndiag/<layer>/` -> function that reads it from a recording; NaN if it was not measured."""


def scalars(recording: Recording, which: LogChoice) -> dict[str, float]:
    """`rnndiag/<layer>/<name>` -> value, for every layer or for the worst one; finite values only."""
    layers = recording.layers
    if which == "none" or not layers:
        return {}
    if which == "worst":
        layers = (worst_layer(recording),)
    found = {
        f"rnndiag/{layer}/{name}": read(recording, layer)
        for layer in layers
        for name, read in SCALARS.items()
    }
    return {name: value for name, value in found.items() if math.isfinite(value)}


def worst_layer(recording: Recording) -> str:
    """The layer with the shortest reach among layers of several steps; without a reach, the first layer."""

    def rank(layer: str) -> float:
        value = _reach(recording, layer)
        samples = recording.get("valid_samples", layer)
        one_step = samples is not None and len(samples.values) == 1
        return math.inf if math.isnan(value) or one_step else value

    return min(recording.layers, key=rank)


def log_scalars(loop: TrainingLoop, recording: Recording, which: LogChoice) -> None:
    """Log the scalars of a recording to the loop's own loggers."""
    if found := scalars(recording, which):
        loop.log(found)


def log_in_module(loop: TrainingLoop, recording: Recording, which: LogChoice) -> None:
    """Publish the scalars of all layers as metrics; `rnndiag/<layer>/reach` of the worst one is in the progress bar."""
    if which == "none":
        return
    shown = f"rnndiag/{worst_layer(recording)}/reach" if recording.layers else ""
    loop.monitor(scalars(recording, "all"), shown)
