"""The verdicts of `memory_need` as sentences."""

from __future__ import annotations

import math
from collections.abc import Callable

from rnndiag.stats.need.numbers import (
    CONTROL,
    FEWEST_ROWS,
    FEWEST_SEQUENCES,
    GATE,
    Group,
    NeedNumbers,
    P,
)
from rnndiag.stats.need.verdict import (
    Lead,
    holds_most,
    reaches_further_than_used,
    too_little_data,
)
from rnndiag.store.text import counted


def sentence_of(need: NeedNumbers, lead: Lead) -> str:
    """The sentence of a verdict."""
    return _SENTENCES[lead](need)


def further_sentences(need: NeedNumbers, lead: Lead) -> tuple[str, ...]:
    """Verdicts that hold beside the leading one, then the limits of the answer."""
    if too_little_data(need):
        return need.notes
    readout = need.present_p <= P and need.present.gain > need.gate
    holds: dict[Lead, bool] = {
        "needed_beyond": need.further.passes(need.gate),
        "readout": readout,
        "needed_within": need.within.passes(need.gate),
        # Where far inputs would help, "a shorter window loses nothing" reads as the opposite advice.
        "reached_not_used": reaches_further_than_used(need) and not need.further.passes(need.gate),
    }
    found = [_SENTENCES[one](need) for one, true in holds.items() if true and one != lead]
    if (
        lead == "readout"
        and holds_most(need)
        and (holds["needed_beyond"] or holds["needed_within"])
    ):
        found.append(
            "While the state holds that much unused, what is said of past inputs is provisional."
        )
    elsewhere = _screen_elsewhere(need)
    return (*found, *([elsewhere] if elsewhere else []), *need.notes)


def number(value: float) -> str:
    """A number with three significant digits."""
    return f"{value:.3g}"


def percent(value: float) -> str:
    """A share in per cent, two significant digits."""
    digits = f"{100 * value:.2g}"
    return f"{float(digits):g} %"


def steps(count: float) -> str:
    """1 step, 2 steps."""
    return f"{count:.3g} step" + ("" if count == 1 else "s")


def lags(group: Group) -> str:
    """4-7 steps back."""
    if group.low == group.high:
        return f"{steps(group.low)} back"
    return f"{group.low}-{group.high} steps back"


def _share(gain: float, need: NeedNumbers) -> str:
    """The gain as a share of the loss; empty if the loss can be negative, as that of a density can."""
    return f" ({percent(gain / need.loss)} of it)" if 0 < gain <= need.loss else ""


def _largest(need: NeedNumbers, further: bool) -> Group | None:
    side = [g for g in need.groups if (g.low >= need.beyond) == further and g.gain > 0]
    return max(side, key=lambda group: group.gain, default=None)


def _needed_beyond(need: NeedNumbers) -> str:
    peak = _largest(need, further=True)
    where = f": a skip from {lags(peak)} did so" if peak else ","
    limit = {
        "window": f"Training with a window of {steps(need.beyond)} does not reach them.",
        "reach": f"The gradient does not reach them: 90 % of its credit lies within {steps(need.reach)}.",
        "given": f"They lie beyond the {steps(need.beyond)} that were given as the limit.",
    }[need.limit]
    return (
        f"Inputs {need.beyond} or more steps back would lower this net's loss by at least "
        f"{number(need.further.lower)}{_share(need.further.lower, need)}{where} on {need.sequences} "
        f"sequences that it was not fitted to. {limit} Whether training with more learns it was not tried."
    )


def _needed_within(need: NeedNumbers) -> str:
    peak = _largest(need, further=False)
    where = f"Inputs {lags(peak)}" if peak else "Past inputs"
    return (
        f"{where} would help by {number(need.within.gain)} and lie within reach: train on, or use a "
        "larger net, before a longer window."
    )


def _readout(need: NeedNumbers) -> str:
    return (
        f"The state already holds what would lower the loss by {number(need.present.gain)}"
        f"{_share(need.present.gain, need)}; the layers above do not use it yet. "
        "That part is not a question of memory."
    )


def _nothing_found(need: NeedNumbers) -> str:
    return (
        f"{_used(need)} No need of inputs further back was found; one of {percent(need.floor)} of the loss without "
        f"memory would have been found (linear, product and bag skips up to lag {need.max_lag}); others may exist."
    )


def _used(need: NeedNumbers) -> str:
    if need.used_memory is None:
        return "This net draws on no past input that could be measured."
    return f"This net uses {counted(need.used_memory, 'input')}."


def _reached_not_used(need: NeedNumbers) -> str:
    return (
        f"The gradient reaches {steps(need.reach)}, the trained net uses {need.used_memory}: "
        "a shorter window loses nothing that this net uses."
    )


def _solved(need: NeedNumbers) -> str:
    return (
        f"The loss left, {number(need.loss)}, is {percent(need.loss / need.scale)} of what it would be without "
        "memory: nothing worth needing is left."
    )


def _negligible(need: NeedNumbers) -> str:
    return (
        f"Inputs {need.beyond} or more steps back would help measurably, by {number(need.further.gain)}, "
        f"which is {percent(need.further.gain / need.scale)} of the loss without memory: not worth more memory."
    )


def _unresolved(need: NeedNumbers) -> str:
    if too_little_data(need):
        return (
            f"Not resolved: {counted(need.n_sequences, 'sequence')} with {need.rows} losses to fit to. "
            f"At least {FEWEST_SEQUENCES} sequences and {FEWEST_ROWS} losses are needed; "
            "a long series can be cut into pieces."
        )
    half = need.further.upper - need.further.gain
    if half <= 0 or not math.isfinite(half):
        half = CONTROL * need.scale  # the share was not found by the control: use it as half-width
    wanted = max(2 * need.sequences, math.ceil(need.sequences * (half / (GATE * need.scale)) ** 2))
    about = 10 ** (len(str(wanted)) - 1)
    return (
        f"Not resolved: {need.sequences} test sequences do not show a need of {percent(CONTROL)} of the loss. "
        f"About {math.ceil(wanted / about) * about} would do."
    )


def _not_testable(need: NeedNumbers) -> str:
    return (
        f"Not testable: the batches hold no input {need.beyond} or more steps back (the longest lag is "
        f"{need.max_lag}). Give longer sequences."
    )


def _screen_elsewhere(need: NeedNumbers) -> str:
    peaks = [group for group in need.groups if group.significant]
    lag = need.peak_lag
    if not peaks or math.isnan(lag) or any(group.low <= lag <= group.high for group in peaks):
        return ""
    return (
        f"The screen stands out most {steps(lag)} back: a gain goes to the nearest inputs that, together with "
        "the state, suffice."
    )


_SENTENCES: dict[Lead, Callable[[NeedNumbers], str]] = {
    "needed_beyond": _needed_beyond,
    "needed_within": _needed_within,
    "readout": _readout,
    "reached_not_used": _reached_not_used,
    "nothing_found": _nothing_found,
    "solved": _solved,
    "negligible": _negligible,
    "unresolved": _unresolved,
    "not_testable": _not_testable,
}
