"""F12: reach, use and need over one axis of lags: does the task need more memory than the gradient reaches?"""

from __future__ import annotations

import numpy as np

from rnndiag.report.context import Context
from rnndiag.report.figure_data import Axis, Band, FigureData, Line, Mark, Panel, Table
from rnndiag.report.figures.figure import absent, figure
from rnndiag.report.ticks import number
from rnndiag.stats.need import Group, MemoryNeed
from rnndiag.stats.need.stored import FACT, GROUP, PART, USE, need_of
from rnndiag.store.measurement import Measurement

QUESTION = "Does the task need more memory than the gradient reaches?"
DECADES = 4
LARGEST = 1e9
"""Larger numbers are no lags and no losses."""


@figure("F12", "Need", QUESTION, place=1.5)
def make(context: Context) -> FigureData:
    """Three strips, if `memory_need` was measured: of the lead layer, or of the one layer that it was measured of."""
    layers = context.run.layers_of("need_fact") if len(context.run.steps) else ()
    if not layers:
        return absent("F12", context.nothing("need_fact"))
    layer = next((one for one in layers if context.lead.startswith(one)), layers[-1])
    parts = {name: context.last(name, layer) for name in (GROUP, PART, USE, FACT)}
    known = {name: part for name, part in parts.items() if part is not None}
    if len(known) < len(parts):
        return absent("F12", context.nothing("need_fact", layer))
    if not all(part.values.size and _sound(part) for part in known.values()):
        return absent("F12", f"The need of {layer} holds numbers that cannot be drawn.")
    need = need_of(layer, known)
    lags = _last_lag(need)
    panels = [_use(need, lags), _need(need, lags)]
    reach = _reach(context, need, lags)
    return FigureData(
        "F12",
        QUESTION,
        need.sentence,
        "Shaded: beyond the limit. USE: how much the loss rises if an output sees only the inputs up to that lag. "
        "NEED: how much the loss falls on other sequences if inputs of these lags are added; strong bars pass both "
        "tests and 1 % of the scale, faint ones do not. USE and NEED have one scale, from 0 to the loss without "
        "memory.",
        tuple(panels if reach is None else [reach, *panels]),
        _table(need),
        layer=need.layer,
        warnings=need.further_sentences,
    )


def _sound(part: Measurement) -> bool:
    """Whether a stored part can be drawn: facts that are not known are NaN, all else is a number of sane size."""
    values = np.asarray(part.values, float)
    if part.name == FACT:
        return bool(np.isfinite(values[0]) and np.all(~(np.abs(values) > LARGEST)))
    known = values[~np.isnan(values)] if part.name == PART else values
    return bool(np.all(np.isfinite(known) & (np.abs(known) < LARGEST)))


def _last_lag(need: MemoryNeed) -> int:
    return max([need.max_lag, *(point.inputs - 1 for point in need.use)])


def _axis(lags: int) -> Axis:
    return Axis("lag", -0.5, lags + 0.5)


def _beyond(need: MemoryNeed, lags: int, low: float, high: float) -> tuple[Band, ...]:
    if need.beyond > lags:
        return ()
    x = np.array([need.beyond - 0.5, lags + 0.5])
    return (Band(x, np.full(2, low), np.full(2, high), f"beyond {need.beyond}", 0.15, "limit"),)


def _reach(context: Context, need: MemoryNeed, lags: int) -> Panel | None:
    """The credit profile of the layer that the need was measured of."""
    runs = context.run.layers_of("credit_profile")
    names = [one for one in runs if one == need.layer or one.startswith(f"{need.layer}.l")]
    series = context.profiles(min(names, key=len)) if names else None
    if series is None:
        return None
    profile = series.valid(series.steps.size - 1).sel(profile_stat="profile").values
    credit = np.exp(np.asarray(profile, float))[: lags + 1]
    shown = credit[np.isfinite(credit) & (credit > 0)]
    if not shown.size:
        return None
    high = 10.0 ** np.ceil(np.log10(shown.max()))
    low = max(high / 10**DECADES, 10.0 ** np.floor(np.log10(shown.min())))
    if low >= high:
        low = high / 10
    marks = (
        (Mark("x", need.reach, f"reach {number(need.reach)}", "second"),)
        if np.isfinite(need.reach) and need.reach <= lags
        else ()
    )
    line = Line(np.arange(credit.size), np.where(credit >= low, credit, np.nan))
    return Panel(
        _axis(lags),
        Axis("credit relative to lag 0", low, high, "log10"),
        title="REACH",
        lines=(line,),
        bands=_beyond(need, lags, low, high),
        marks=marks,
        shape="low",
    )


def _use(need: MemoryNeed, lags: int) -> Panel:
    """A step line: with the last d inputs an output sees the lags 0 .. d - 1."""
    x, y, low, high = (np.array(part, float) for part in zip(*need.use, strict=True))
    marks = (
        ()
        if need.used_memory is None
        else (Mark("x", need.used_memory - 1, f"uses {need.used_memory} inputs", "second"),)
    )
    bounds = tuple(
        Line(np.array([d - 1, d - 1]), np.array([a, b]), tone="second")
        for d, a, b in zip(x, low, high, strict=True)
        if b > a
    )
    return Panel(
        _axis(lags),
        _loss_axis(need, "rise of the loss"),
        title="USE",
        lines=(Line(x - 1, y, "", "main", dots=True), *bounds),
        bands=_beyond(need, lags, *_limits(need)),
        marks=marks,
        shape="low",
    )


def _need(need: MemoryNeed, lags: int) -> Panel:
    """One bar per group of lags, one at 0 for the present."""
    present = Group(0, 0, *need.present, need.present_p, 1.0, False)
    bars = tuple(_bar(group, "third") for group in (present,) if group.gain) + tuple(
        _bar(group, "main") for group in need.groups if group.gain
    )
    tested = f"not tested beyond lag {need.max_lag}" if need.max_lag < lags else ""
    marks = (Mark("x", need.peak_lag, "screen", "third"),) if np.isfinite(need.peak_lag) else ()
    return Panel(
        _axis(lags),
        _loss_axis(need, "fall of the loss"),
        title="NEED",
        lines=(Line(np.array([-0.5, lags + 0.5]), np.zeros(2), tone="limit"),),
        bands=(*_beyond(need, lags, *_limits(need)), *bars),
        marks=marks,
        notes=tuple(filter(None, [tested])),
        shape="low",
    )


def _bar(group: Group, tone: str) -> Band:
    x = np.array([group.low - 0.45, group.high + 0.45])
    strength = 0.9 if group.significant else 0.35
    return Band(x, np.zeros(2), np.full(2, group.gain), "", strength, tone)  # type: ignore[arg-type]


def _limits(need: MemoryNeed) -> tuple[float, float]:
    """One scale for USE and NEED, so that a small need looks small."""
    lowest = min(
        [0.0, *(g.gain for g in need.groups), *(u.lower for u in need.use), need.present[0]]
    )
    highest = max([need.scale, *(u.upper for u in need.use)])
    highest = highest or 1.0
    return min(lowest, -0.02 * highest), 1.02 * highest


def _loss_axis(need: MemoryNeed, label: str) -> Axis:
    return Axis(label, *_limits(need))


def _table(need: MemoryNeed) -> Table:
    rows = [("present", *_cells(need.present), "", "")]
    for group in need.groups:
        name = str(group.low) if group.low == group.high else f"{group.low}-{group.high}"
        cells = _cells((group.gain, group.lower, group.upper))
        rows.append((name, *cells, number(group.p), number(group.p_over_control)))
    head = ("steps back", "gain", "from", "to", "p", "p over control")
    return Table(head, tuple(rows), (1, 2, 3, 4, 5))


def _cells(gain: tuple[float, float, float]) -> tuple[str, str, str]:
    return number(gain[0]), number(gain[1]), number(gain[2])
