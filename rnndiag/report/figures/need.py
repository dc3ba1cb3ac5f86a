"""F12: reach, use and need on one axis of lags: does the task need more memory than the gradient reaches?"""

from __future__ import annotations

import numpy as np

from rnndiag.report.context import Context
from rnndiag.report.figure_data import Axis, Band, FigureData, Line, Mark, Panel, Table, Tone
from rnndiag.report.figures.figure import absent, figure
from rnndiag.report.ticks import number
from rnndiag.stats.need import Group, MemoryNeed
from rnndiag.stats.need.screen import screens_in
from rnndiag.stats.need.stored import FACT, GROUP, PART, USE, need_of
from rnndiag.store.measurement import Measurement
from rnndiag.store.recording import Recording

DECADES = 4
LARGEST = 1e9
"""Larger stored numbers are invalid as lags or losses."""


@figure(
    "F12",
    "Need",
    "Does the task need more memory than the gradient reaches?",
    place=1.5,
    newest=("need_fact", "need_screen"),
)
def make(context: Context) -> FigureData:
    """Three strips if `memory_need` was run: of the lead layer, or of the only layer that it was run on."""
    layers = context.run.layers_of("need_fact") if len(context.run.steps) else ()
    if not layers:
        return _screened(context)
    layer = next((one for one in layers if context.lead.startswith(one)), layers[-1])
    parts = {name: context.last(name, layer) for name in (GROUP, PART, USE, FACT)}
    known = {name: part for name, part in parts.items() if part is not None}
    if len(known) < len(parts):
        return absent(context.nothing("need_fact", layer))
    if not all(_sound(part) for part in known.values()):
        return absent(f"The need of {layer} holds numbers that cannot be drawn.")
    need = need_of(layer, known)
    lags = _last_lag(need)
    panels = [_use(need, lags), _need(need, lags)]
    reach = _reach(context, need, lags)
    return FigureData(
        str(need).replace("\n", " "),
        "Shaded: beyond the limit; hatched: not tested. USE: how much the loss rises if an output sees only the inputs "
        "up to that lag. NEED: how much the loss falls on other sequences if inputs of these lags are added; strong "
        "bars pass both tests and 1 % of the scale, faint ones do not. USE and NEED have one scale, from 0 to the loss "
        "without memory.",
        tuple(panels if reach is None else [reach, *panels]),
        _table(need),
        layer=need.layer,
    )


def _sound(part: Measurement) -> bool:
    """Whether stored values can be drawn: facts may be NaN (unknown), all others must be numbers below LARGEST."""
    values = np.asarray(part.values, float)
    if not values.size:
        return part.name == GROUP  # too little data: no lag was tested
    if part.name == FACT:
        return bool(np.isfinite(values[0]) and np.all(~(np.abs(values) > LARGEST)))
    known = values[~np.isnan(values)] if part.name == PART else values
    return bool(np.all(np.isfinite(known) & (np.abs(known) < LARGEST)))


def _last_lag(need: MemoryNeed) -> int:
    """The end of the axis: the longest lag tested or used; a limit beyond is included if there is room."""
    known = max([need.max_lag, *(point.inputs - 1 for point in need.use)])
    return max(known, min(need.beyond, 2 * known + 1))


def _untested(first: float, lags: int, low: float, high: float, words: str) -> tuple[Band, ...]:
    """Hatching from a lag to the end of the axis, since an empty strip would be read as zero."""
    if first > lags:
        return ()
    x = np.array([first - 0.5, lags + 0.5])
    return (Band(x, np.full(2, low), np.full(2, high), words, 0.0, "limit"),)


def _axis(lags: int) -> Axis:
    return Axis("lag", -0.5, lags + 0.5)


def _beyond(need: MemoryNeed, lags: int, low: float, high: float) -> tuple[Band, ...]:
    if need.beyond > lags:
        return ()
    x = np.array([need.beyond - 0.5, lags + 0.5])
    return (Band(x, np.full(2, low), np.full(2, high), f"beyond {need.beyond}", 0.15, "limit"),)


def _reach(context: Context, need: MemoryNeed, lags: int) -> Panel | None:
    """The credit profile of the layer that the need was measured on."""
    credit = _credit(context, need.layer)[: lags + 1]
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
    cut = need.limit == "window" and credit.size <= need.beyond
    words = f"the gradient is cut after {need.beyond} steps" if cut else "not measured"
    return Panel(
        _axis(lags),
        Axis("credit relative to lag 0", low, high, "log10"),
        title="REACH",
        lines=(line,),
        bands=(
            *_beyond(need, lags, low, high),
            *(() if cut else _untested(credit.size, lags, low, high, words)),
        ),
        marks=marks,
        notes=(words,) if credit.size <= lags else (),
        shape="low",
    )


def _credit(context: Context, layer: str) -> np.ndarray:
    """The newest credit profile of a layer over lag; of pieces that carry a state, the first one with credit."""
    for name in sorted(context.run.layers_of("credit_profile"), key=lambda one: (len(one), one)):
        base = name.split("#")[0]
        series = context.profiles(name) if base == layer or base.startswith(f"{layer}.l") else None
        if series is None:
            continue
        profile = series.valid(series.steps.size - 1).sel(profile_stat="profile").values
        credit = np.exp(np.asarray(profile, float))
        if np.any(np.isfinite(credit) & (credit > 0)):
            return np.asarray(credit)
    return np.zeros(0)


def _use(need: MemoryNeed, lags: int) -> Panel:
    """A step line: an output computed from the last d inputs depends on lags 0 .. d - 1."""
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
    """One bar per group of lags, and one at 0 for the present."""
    present = Group(0, 0, *need.present, need.present_p, 1.0, False)
    bars = tuple(_bar(group, "third") for group in (present,) if group.gain) + tuple(
        _bar(group, "main") for group in need.groups if group.gain
    )
    last = need.groups[-1].high if need.groups else 0
    words = f"not tested beyond lag {last}" if last else "not tested"
    marks = (Mark("x", need.peak_lag, "screen", "third"),) if np.isfinite(need.peak_lag) else ()
    return Panel(
        _axis(lags),
        _loss_axis(need, "fall of the loss"),
        title="NEED",
        lines=(Line(np.array([-0.5, lags + 0.5]), np.zeros(2), tone="limit"),),
        bands=(
            *_beyond(need, lags, *_limits(need)),
            *_untested(last + 1, lags, *_limits(need), words),
            *bars,
        ),
        marks=marks,
        notes=(words,) if last < lags else (),
        shape="low",
    )


def _why_nothing(context: Context) -> str:
    why = context.nothing("need_fact")
    asked = "Not recorded in this run: call rnndiag.memory_need, or give the callback need=True."
    return asked if why.startswith("Not recorded") else why


def _screened(context: Context) -> FigureData:
    """Without a measured need: the lags indicated by the recorded screen, if there is one."""
    layers = context.run.layers_of("need_screen") if len(context.run.steps) else ()
    if not layers:
        return absent(_why_nothing(context))
    layer = next((one for one in layers if one == context.lead), layers[-1])
    curve = next((one for one in screens_in(_screens(context, layer))), None)
    if curve is None or not np.isfinite(curve.explained).any():
        return absent(_why_nothing(context))
    lags = np.asarray(curve.lags, float)
    rows = np.clip(curve.explained, -1.0, 2.0)
    lines = [
        Line(lags[known], row[known], words, tone, dots=True)
        for row, (words, tone) in zip(rows, _KINDS, strict=True)
        if (known := np.isfinite(row)).any()
    ]
    high = max(0.1, 1.1 * float(np.nanmax(rows)))
    panel = Panel(
        _axis(int(lags[-1])),
        Axis("share explained", min(-0.02, float(np.nanmin(rows))), high),
        title="SCREEN",
        lines=(Line(np.array([-0.5, lags[-1] + 0.5]), np.zeros(2), tone="limit"), *lines),
        marks=() if curve.peak is None else (Mark("x", curve.peak[1], "points here", "third"),),
        shape="low",
    )
    return FigureData(
        curve.sentence,
        "How much of the error that the loss sends to the outputs would be explained by a function of the input so "
        "many steps back, beyond what the state holds, pooled over the recordings. Nothing was held out: it points at "
        "lags, and is too large near a solved net.",
        (panel,),
        layer=layer,
    )


_KINDS: tuple[tuple[str, Tone], ...] = (
    ("input", "main"),
    ("input times present", "second"),
    ("sum over an octave of lags", "third"),
)


def _screens(context: Context, layer: str) -> list[Recording]:
    """The screens of one layer, as recordings without other measurements."""
    series = context.series("need_screen", layer)
    if series is None:
        return []
    return [
        Recording(int(step), measurements=(series.valid(k),)) for k, step in enumerate(series.steps)
    ]


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
