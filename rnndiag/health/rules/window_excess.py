"""How much longer the window in use is than the gradient needs: steps that cost time and memory and change little."""

from __future__ import annotations

import numpy as np

from rnndiag.health.numbers import LayerNumbers, NotRecorded
from rnndiag.health.rule import RuleSeries, rule
from rnndiag.health.rules.truncation_error import windows_in_use
from rnndiag.stats.advice import seam_name
from rnndiag.stats.window import recommended


@rule(
    "window_excess",
    meaning="the window in use as a multiple of the window for 10 %",
    statement="the window in use is {value} times the one that keeps the bias within 10 %",
    excuse="fine where time and memory allow it",
    too_low="",
    too_high="A shorter window would do and cost less: the report shows the smallest one for 10 %.",
    family="profile",
    rank=60,
    unit="x",
    digits=1,
    comparable=False,
    typical=lambda numbers: (None, 4.0),
)
def window_excess(numbers: LayerNumbers) -> RuleSeries:
    """One number for the judged recordings together, as the recommendation pools them."""
    if numbers.cause == "detach":
        raise NotRecorded(
            "the state is cut before the credit has faded, so no shorter window is in question"
        )
    if seam_name(numbers.whole.run, numbers.layer) is not None:
        raise NotRecorded("training cuts the state: truncation_error says what that costs")
    bias = numbers.get("window_bias")
    window = windows_in_use(numbers)
    in_use = [window[step] for step in bias.steps.tolist() if step in window]
    found = recommended(numbers.whole.run, numbers.layer, bias.steps, 0.1)
    if not in_use or not found.reached or found.steps <= 0:
        raise NotRecorded(f"no window is recommended for {numbers.layer}")
    excess = float(np.median(in_use)) / found.steps
    return RuleSeries(bias.steps[-1:], np.array([excess]), found.text)
