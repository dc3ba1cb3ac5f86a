"""F1: the credit profile over lag, with its bands, reach and recommended window."""

from __future__ import annotations

import numpy as np

from rnndiag.report.context import LN10, Context
from rnndiag.report.decimate import shown_lags
from rnndiag.report.figure_data import Axis, Band, FigureData, Line, Mark, Panel, Table, Tone
from rnndiag.report.figures.figure import absent, figure
from rnndiag.report.seam import seam_of
from rnndiag.report.ticks import number, power_of_ten, ten_to
from rnndiag.stats.reach import half_life

FLOOR = 16
"""Decades below the largest credit at which the picture ends; lower values are not drawn, with a note."""

MOST_LAYERS = 3
MARKED = 2.0
"""Marks beyond this multiple of the number of lags are mentioned as text instead of extending the axis."""


@figure("F1", "Reach", "How far back does the gradient reach?", newest=("credit_profile",))
def make(context: Context) -> FigureData:
    """The newest profile of the lead layer, its quantiles, and the profiles of other layers."""
    layer = _call_with_credit(context, context.lead)
    newest, passed = context.newest("credit_profile", layer) if layer else (None, [])
    if newest is None:
        return absent(context.nothing("credit_profile", layer))
    log10 = {
        name: newest.sel(profile_stat=name).values / LN10
        for name in newest.coordinates["profile_stat"]
    }
    profile = log10["profile"]
    if not np.isfinite(profile).any():
        why = "no number is finite" if np.isnan(profile).any() else "every number is exactly zero"
        return absent(
            f"No credit at any lag: {why}, so the loss says nothing about {layer}'s past."
        )
    lags = np.arange(profile.size)
    top = float(np.ceil(np.nanmax(np.where(np.isfinite(profile), profile, np.nan)) + 0.2))
    lowest = float(np.floor(np.min(profile[np.isfinite(profile)])))
    bottom = max(lowest, top - FLOOR)
    lines = _lines(context, layer, profile)
    marks = _marks(context, layer, profile.size)
    # A mark a little beyond the last lag still has a place: a reach of all 50 steps lies at 49.2 of lags 0 to 49.
    last = max(
        1, _shown(lines, bottom) - 1, *(m.at for m in marks if m.at <= MARKED * profile.size)
    )
    panel = Panel(
        Axis("lag: steps back from the loss", 0.0, float(last)),
        Axis("credit, relative to lag 0", ten_to(bottom), ten_to(top), "log10"),
        lines=tuple(lines),
        bands=(
            Band(lags, _plain(log10["q05"]), _plain(log10["q95"]), "90 % of outputs", 0.18),
            Band(lags, _plain(log10["q25"]), _plain(log10["q75"]), "half of outputs", 0.3),
        ),
        marks=marks,
        notes=_notes(profile, bottom) + _beyond(marks, last),
    )
    return FigureData(
        _finding(context, layer, newest.values.shape[0], profile),
        "A straight line on this scale is exponential decay; a flat line is a net that keeps credit; a line that "
        "rises is explosion. Bands: the middle half and the middle 90 % over outputs.",
        (panel,),
        _table(profile),
        layer=layer,
        warnings=(f"Not finite at step {', '.join(map(str, passed[:5]))}: an older one is shown.",)
        if passed
        else (),
    )


def _call_with_credit(context: Context, layer: str) -> str:
    """The layer, or the last of its calls with credit: of several chunks the losses may depend on the last one only."""
    name = layer.partition("#")[0]
    calls = [layer, *(one for one in reversed(context.run.layers) if one.partition("#")[0] == name)]
    for call in calls:
        found = context.reach(call)
        if found is not None and found.reached:
            return call
    return layer


def _lines(context: Context, layer: str, profile: np.ndarray) -> list[Line]:
    """The layer's profile, those of its stack and of other layers, across the seam, and of the baseline."""
    stacks = [name for name, layers in context.stacks.items() if layer in layers]
    others = [*stacks, *(name for name in context.layers if name != layer)][: MOST_LAYERS - 1]
    lines = [Line(np.arange(profile.size), _plain(profile), layer, "main")]
    tones: tuple[Tone, ...] = ("second", "third")
    for name, tone in zip(others, tones, strict=False):
        beside = context.last("credit_profile", name)
        if beside is not None:
            values = beside.sel(profile_stat="profile").values / LN10
            if np.isfinite(values).any():
                lines.append(Line(np.arange(values.size), _plain(values), name, tone))
    across = seam_of(context, layer)
    if across is not None:
        values = across.credit / LN10
        lines.append(Line(np.arange(values.size), _plain(values), "across the seam", "bound"))
    if context.baseline is not None and ("credit_profile", layer) in context.baseline:
        old = context.baseline.select("credit_profile", layer)
        values = old.valid(old.steps.size - 1).sel(profile_stat="profile").values / LN10
        lines.append(Line(np.arange(values.size), _plain(values), "baseline", "baseline"))
    return lines


def _shown(lines: list[Line], bottom: float) -> int:
    """Number of lags to draw: with very many, only those where some curve is above the lower end of the axis."""
    count = max(line.y.size for line in lines)
    above = [np.flatnonzero(np.isfinite(line.y) & (line.y >= ten_to(bottom))) for line in lines]
    return shown_lags(count, max((int(found[-1]) for found in above if found.size), default=0))


def _plain(log10: np.ndarray) -> np.ndarray:
    """10 ** values; exact zeros (-inf) become gaps."""
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        return np.where(np.isneginf(log10), np.nan, 10.0**log10)


def _marks(context: Context, layer: str, lags: int) -> tuple[Mark, ...]:
    """Reach, window for 10 % bias, window in use, and the lag that the task needs, as far as they are known."""
    marks = []
    reached = context.reach(layer)
    if reached is not None and reached.reached:
        marks.append(
            Mark("x", float(reached), f"reach: {reached.number} steps hold 90 %", "second")
        )
    if ("window_bias", layer) in context.run:
        found = context.advice(layer)
        if found is not None and found.window.reached and found.window.steps < lags:
            steps = found.window.steps
            marks.append(Mark("x", steps, f"window for 10 % bias: {steps:.0f}", "third"))
        if found is not None and found.in_use is not None and found.in_use.steps >= 1:
            used = found.in_use.steps
            marks.append(Mark("x", used, f"window in use: {used:.0f}", "bound"))
    needed = context.needed_lag
    if needed is not None:
        marks.append(Mark("x", float(needed), f"the task needs lag {needed}", "limit"))
    return tuple(marks)


def _beyond(marks: tuple[Mark, ...], last: float) -> tuple[str, ...]:
    """Marks that lie beyond the end of the axis, as text."""
    return tuple(f"{mark.label} (beyond the axis)" for mark in marks if mark.at > last)


def _notes(log10: np.ndarray, bottom: float) -> tuple[str, ...]:
    notes = []
    low = np.flatnonzero(np.isfinite(log10) & (log10 < bottom))
    if low.size:
        notes.append(f"below {power_of_ten(bottom)} from lag {low[0]}: not drawn")
    zero = np.flatnonzero(np.isneginf(log10))
    if zero.size:
        notes.append(
            f"exactly zero from lag {zero[0]}" if zero[0] else f"exactly zero at {zero.size} lags"
        )
    return tuple(notes)


def _finding(context: Context, layer: str, lags: int, log10: np.ndarray) -> str:
    if log10.size == 1:
        return f"{layer} makes one time step: there is no past that a gradient could reach."
    reached, total = context.reach(layer), context.time_steps(layer)
    of = f" of {total}" if total else ""
    words = []
    if reached is None or not reached.reached:
        why = "not measured" if reached is None else reached.text
        words.append(f"90 % of the credit of {layer}: {why}.")
    else:
        words.append(
            f"90 % of what the loss says about the past of {layer} lies within {reached.text}{of} steps."
        )
    peak = int(np.nanargmax(np.where(np.isfinite(log10), log10, -np.inf)))
    if peak > 0:
        words.append(f"It peaks at lag {peak}, {number(ten_to(log10[peak]))} times lag 0.")
    half = half_life(log10 * LN10)
    words.append(
        f"It has halved after {float(half):.3g} steps."
        if half.reached
        else f"Half of lag 0: {half.text} lags."
    )
    across = seam_of(context, layer)
    if across is not None:
        words.append(across.sentence)
    return " ".join(words)


def _table(log10: np.ndarray) -> Table:
    chosen = sorted({0, *(2**k for k in range(14) if 2**k < log10.size), log10.size - 1})
    covered = np.cumsum(np.nan_to_num(_plain(log10 - np.max(log10[np.isfinite(log10)])), nan=0.0))
    rows = tuple(
        (
            str(d),
            number(ten_to(log10[d])) if np.isfinite(log10[d]) else "0",
            f"{covered[d] / covered[-1]:.1%}",
        )
        for d in chosen
    )
    return Table(("lag", "credit relative to lag 0", "share of credit up to here"), rows, (0, 1, 2))
