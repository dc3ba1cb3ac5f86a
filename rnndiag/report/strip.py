"""The strip of headline numbers under the verdict."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from rnndiag.report.context import Context, old, span
from rnndiag.report.ticks import number
from rnndiag.report.unfit import or_else
from rnndiag.stats.over_recordings import nonfinite_counts


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
    """The reach of a layer; in a stack the stack's reach, with its layers in the remark."""
    name = next((stack for stack, layers in context.stacks.items() if layer in layers), layer)
    found, total = (context.reach(name) if name else None), context.time_steps(name)
    if found is None or not found.reached:
        return Tile("Reach (90 % of credit)", "–", "not recorded" if found is None else found.text)
    share = f"{100 * float(found) / total:.0f} % of {total} steps" if total else "of the sequence"
    known = f"{found.give_or_take.strip()}, " if found.give_or_take else ""
    parts = (
        f"{one} {reach.number}"
        for one in context.stacks.get(name, ())
        if (reach := context.reach(one)) is not None and reach.reached
    )
    beside = f", whole stack ({', '.join(parts)})" if name in context.stacks else ""
    when = context.when("credit_profile", name)
    return Tile(
        "Reach (90 % of credit)", f"{found.number} steps", f"{known}{share}{beside}, {when}"
    )


def _decay(context: Context, layer: str) -> Tile:
    found = last_decay(context, layer)
    if found is None:
        return Tile("Decay per step back", "–", "not measured")
    last, when = found
    if last <= 0:
        return Tile("Decay per step back", "×0", f"nothing beyond lag 0, {when}")
    halves = f"halves in {np.log(0.5) / np.log(last):.3g} steps" if last < 1 else "does not shrink"
    return Tile("Decay per step back", f"×{number(last)}", f"{halves}, {when}")


def last_decay(context: Context, layer: str) -> tuple[float, str] | None:
    """The newest known decay, and its step as text; None if there is none."""
    steps, _, decays = context.reaches(layer)
    for step, one in zip(steps[::-1].tolist(), decays[::-1], strict=True):
        if one.reached:
            return float(one), span([step]) if step in context.run.judged() else old(step)
    return None


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
    when = context.when("window_bias", found.name)
    return Tile(name, f"{bound}{window.steps:.0f} steps", f"{window.source} bias{of}, {when}")


def _not_finite(context: Context) -> Tile:
    counts = {layer: nonfinite_counts(context.run, layer) for layer in context.layers}
    hits = [(step, layer) for layer, own in counts.items() for step, count in own.items() if count]
    total = sum(sum(own.values()) for own in counts.values())
    where = "first at step {}, {}".format(*min(hits, key=lambda hit: hit[0])) if hits else ""
    steps = context.run.steps.tolist()
    every = f"in {len(steps)} recordings{f', {span(steps)}' if steps else ''}"
    return Tile("Not finite", str(total), where or every)


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
    proved = [outline for outline in context.run.outlines if outline.phase == "train"]
    exact = sum(outline.verdict == "exact" for outline in proved)
    when = f", {span([outline.step for outline in proved])}" if proved else ""
    remark = f"{exact} of {len(proved)} recordings exact{when}"
    return Tile("Proof (largest residual)", number(worst) if seen else "–", remark)
