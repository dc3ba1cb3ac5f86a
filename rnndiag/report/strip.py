"""The strip of headline numbers under the verdict."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from rnndiag.report.context import Context
from rnndiag.report.ticks import number
from rnndiag.report.unfit import or_else


@dataclass(frozen=True)
class Tile:
    """One headline number, with its name above and a remark below."""

    name: str
    value: str
    remark: str


def tiles(context: Context) -> list[Tile]:
    """The tiles reach, decay and window of the lead layer, and not finite and proof of the whole run."""
    layer = context.lead
    parts: dict[str, Callable[[], Tile]] = {
        "Reach (90 % of credit)": lambda: _reach(context, layer),
        "Decay": lambda: _decay(context, layer),
        "Window": lambda: _window(context, layer),
        "Not finite": lambda: _not_finite(context),
        "Proof": lambda: _proof(context),
    }
    return [
        or_else(make, lambda fault, name=name: Tile(name, "–", "its arrays do not fit together"))  # type: ignore[misc]
        for name, make in parts.items()
    ]


def _reach(context: Context, layer: str) -> Tile:
    found, total = (context.reach(layer) if layer else None), context.time_steps(layer)
    if found is None or not found.reached:
        return Tile("Reach (90 % of credit)", "–", "not recorded" if found is None else found.text)
    share = f"{100 * float(found) / total:.0f} % of {total} steps" if total else "of the sequence"
    known = f"{found.give_or_take.strip()}, " if found.give_or_take else ""
    return Tile("Reach (90 % of credit)", f"{found.number} steps", f"{known}{share}")


def _decay(context: Context, layer: str) -> Tile:
    _, _, decays = context.reaches(layer)
    known = [d for d in decays if d.reached]
    if not known:
        return Tile("Decay per step back", "–", "not measured")
    last = float(known[-1])
    if last <= 0:
        return Tile("Decay per step back", "×0", "nothing beyond lag 0")
    halves = f"halves in {np.log(0.5) / np.log(last):.3g} steps" if last < 1 else "does not shrink"
    return Tile("Decay per step back", f"×{number(last)}", halves)


def _window(context: Context, layer: str) -> Tile:
    name = "Window for 10 % bias"
    if ("window_bias", layer) not in context.run:
        return Tile(name, "–", "not recorded")
    found = context.advice(layer)
    if found is None:
        return Tile(name, "–", "not recorded")
    window = found.window
    if not window.reached:
        return Tile(name, "–", f"none within {window.within} steps")
    bound = "≤ " if window.extrapolated else "≈ " if window.between else ""
    of = ", whole stack" if found.name in context.stacks else ""
    return Tile(name, f"{bound}{window.steps:.0f} steps", f"{window.source} bias{of}")


def _not_finite(context: Context) -> Tile:
    total, where = 0, ""
    for quantity in ("nonfinite_states", "nonfinite_adjoints"):
        for layer in context.run.layers_of(quantity):
            series = context.series(quantity, layer)
            if series is None:
                continue
            count = (
                np.nan_to_num(np.asarray(series.values, float))
                .reshape(series.steps.size, -1)
                .sum(1)
            )
            hit = np.flatnonzero(count)
            total += int(min(count.sum(), 1e18))
            where = where or (
                f"first at step {int(series.steps[hit[0]])}, {layer}" if hit.size else ""
            )
    return Tile("Not finite", str(total), where or f"in {len(context.run.steps)} recordings")


def _proof(context: Context) -> Tile:
    worst = 0.0
    seen = False
    for layer in context.run.layers_of("residual"):
        series = context.series("residual", layer)
        if series is not None:
            values = np.asarray(series.values, float)
            known = values[~np.isnan(values)]
            seen = seen or known.size > 0
            worst = max(worst, float(known.max(initial=0.0)))
    verdicts = [outline.verdict for outline in context.run.outlines if outline.phase == "train"]
    exact = sum(word == "exact" for word in verdicts)
    remark = f"{exact} of {len(verdicts)} recordings exact"
    return Tile("Proof (largest residual)", number(worst) if seen else "–", remark)
