"""The screen of text at the end of a fit, and the report page, both made from the run on disk."""

from __future__ import annotations

import math
import os
import textwrap
from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np

from rnndiag.health.diagnosis import Diagnosis, diagnose
from rnndiag.health.diagnosis.finding import paragraphs
from rnndiag.stats.advice import advice
from rnndiag.stats.headline import run_reach, run_window
from rnndiag.stats.over_recordings import nonfinite_counts, of_several_steps
from rnndiag.stats.reach import decay
from rnndiag.stats.time_words import TimeWords
from rnndiag.store.layer_names import recurrence
from rnndiag.store.reader import StoredRun
from rnndiag.store.text import counted, size_text

HEADERS = ("layer", "reach", "gain/step", "window (10 %)", "rho(W)", "not finite", "proof")

_MAY_BE_CUT = ("learning", "learned", "cannot_tell")
WIDTH = 108
"""Sentences are wrapped at this many characters."""
MOST_LINES, FEW_LINES = 8, 5
"""With more layers, or calls of a layer, than MOST_LINES only the first FEW_LINES are shown."""


@dataclass(frozen=True)
class LayerLine:
    """One layer's line in the table of the screen."""

    layer: str
    reach: str
    gain: str
    window: str
    rho: str
    not_finite: str
    proof: str


def screen(
    run: StoredRun, share: float, words: TimeWords, broke: str = "", page: float = 0.0
) -> str:
    """The text of the screen. page: seconds that making the report took."""
    steps = run.steps_of("train")
    length = max((_length(run, layer) for layer in run.layers), default=0)
    layers = [_line(run, layer) for layer in run.layers]
    stacks = [_line(run, name) for name in run.stacks if ("credit_profile", name) in run]
    found = diagnose(run)
    kept = len({recurrence(layer) for layer in run.layers})
    lines = [
        f"rnndiag: {counted(len(steps), 'recording')}, steps {steps[0]}-{steps[-1]}, "
        f"{counted(kept, 'layer')}{f' in {len(layers)} calls' if len(layers) > kept else ''}, T = {length}",
        *diagnosis_lines(found),
    ]
    if layers:
        judged = run.judged(phase="train")
        lines.append(f"  steps {judged[0]} to {judged[-1]}:")
        folded = layers[FEW_LINES:] if len(layers) > MOST_LINES else []
        lines += _table([line for line in layers if line not in folded] + stacks)
        if folded:
            lines.append(f"  {len(folded)} more such lines stand in the report.")
    lines += _sentences(run, words, found)
    where = shown(Path(run.path))
    lines.append(
        f"  cost {100 * share:.1f} % of training time{f' and {page:.1f} s for the page' if page else ''}, "
        f"{size_text(run.size)} in {where}"
    )
    if broke:
        lines.append(f"  {broke}")
    lines.append(f"  rnndiag report {where} --open")
    return "\n".join(lines)


def diagnosis_lines(found: Diagnosis) -> list[str]:
    """Heading, statement and further causes, wrapped."""
    lines = []
    for text in paragraphs(found):
        lines += textwrap.wrap(
            text, WIDTH, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False
        )
    return lines


def shown(path: Path) -> str:
    """The path as a user would type it from the working directory."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative


def _line(run: StoredRun, layer: str) -> LayerLine:
    """The row of one layer in the table."""
    steps = run.judged(phase="train")
    judged = set(steps.tolist())

    def middle(quantity: str, spec: str) -> str:
        """Median over the judged recordings; if none of them has it, the last recording's value, marked with its
        step."""
        if (quantity, layer) not in run:
            return "-"
        series = run[quantity, layer]
        rows = [i for i, step in enumerate(series.steps.tolist()) if step in judged]
        values = series.values[rows or [-1]].reshape(len(rows) or 1, -1)
        old = "" if rows else f" (step {series.steps[-1]})"
        return _number(float(np.median(values.max(axis=1))), spec).replace("e-0", "e-") + old

    gain = math.nan
    if layer in _judged_layers(run, "credit_profile"):
        profile = run["credit_profile", layer].sel(profile_stat="profile").values[-1]
        gain = float(decay(profile))
    return LayerLine(
        layer,
        _reach_text(run, layer),
        _number(gain, ".3f"),
        _window_text(run, layer),
        middle("spectral_radius", ".3f"),
        str(sum(count > 0 for count in nonfinite_counts(run, layer).values())),
        middle("residual", ".0e"),
    )


def _judged_layers(run: StoredRun, quantity: str) -> tuple[str, ...]:
    """Layers and stacks with the quantity in the judged recordings."""
    return tuple(run.collector.layers_of(quantity, run.judged()))


def _reach_text(run: StoredRun, layer: str) -> str:
    if layer not in _judged_layers(run, "credit_profile"):
        return "-"
    answer = run_reach(run, 0.9, layer)
    if answer.reached:
        return answer.text if answer.give_or_take else f"{answer.value:.1f}"
    return f"> {answer.within}" if math.isinf(answer) else answer.reason


def _window_text(run: StoredRun, layer: str) -> str:
    if layer not in _judged_layers(run, "window_bias"):
        return "-"
    found = run_window(run, 0.1, layer)
    if math.isnan(found.steps):
        return "-"
    if not found.reached:
        return f"> {found.within}"
    about = "<= " if found.extrapolated else "~ " if found.between else ""
    return f"{about}{found.steps:.0f}"


def _number(value: float, spec: str) -> str:
    return "-" if math.isnan(value) else format(value, spec)


def _length(run: StoredRun, layer: str) -> int:
    if ("valid_samples", layer) not in run:
        return 0
    return int(run["valid_samples", layer].lengths["time"].max())


def _table(layers: list[LayerLine]) -> list[str]:
    rows = [HEADERS, *map(astuple, layers)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEADERS))]
    return [
        "  "
        + "   ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _sentences(run: StoredRun, words: TimeWords, diagnosis: Diagnosis) -> list[str]:
    """Sentences below the table: the reach, the window, accidents, clipping, failed proofs."""
    lines = _reach_sentence(run, words)
    if diagnosis.state in _MAY_BE_CUT:  # no window is recommended for a model that does not learn
        lines += [f"  {sentence}" for sentence in _advice(run)]
    accidents = [r.notes["black_box"] for r in run.outlines if "black_box" in r.notes]
    if accidents:
        more = f" ({len(accidents) - 1} more in the report)" if len(accidents) > 1 else ""
        lines.append(f"  {accidents[0]['sentence']}{more}")
    clips = [c for r in run.outlines for c in r.notes.get("clipping", [])]
    clips = [c for c in clips if c["threshold"] is not None]
    if clips and clips[-1]["share"] > 0:
        last = clips[-1]
        lines.append(
            f"  Clipping changed {last['share']:.0%} of the steps of the last epoch: a {last['word']}."
        )
    untrusted = [r.step for r in run.outlines if r.verdict == "inexact" and r.phase == "train"]
    if untrusted:
        are = "recording is" if len(untrusted) == 1 else "recordings are"
        lines.append(
            f"  {len(untrusted)} {are} not exact, the first at step {untrusted[0]}: the report says why."
        )
    errors = [e for r in run.outlines for e in r.notes.get("errors", [])]
    if errors:
        lines.append(
            f"  {counted(len(errors), 'fault')} of the recorder itself: the report lists them."
        )
    return lines


def _reach_sentence(run: StoredRun, words: TimeWords) -> list[str]:
    """The reach of a stack if there is one, else of the layer with the shortest reach."""
    measured = _judged_layers(run, "credit_profile")
    stacks = [name for name in run.stacks if name in measured]
    if not measured:
        return []
    layers = stacks or of_several_steps(run, measured, run.judged())
    worst = min(layers, key=lambda layer: _or_inf(run_reach(run, 0.9, layer)))
    answer = run_reach(run, 0.9, worst)
    if not answer.reached:
        return []
    length = _length(run, run.stacks.get(worst, (worst,))[0])
    return [
        f"  90 % of the credit of {worst} lies within {answer.value:.0f} of {length} steps"
        f"{words.in_brackets(answer.value)}."
    ]


def _advice(run: StoredRun) -> list[str]:
    """The recommendation for the layer or stack that needs the longest window."""
    found = advice(run)
    if found is None:
        return []
    line = f"{found.name}: {found.text}" if len(run.layers) > 1 else found.text
    return textwrap.wrap(line, WIDTH, subsequent_indent="  ", break_on_hyphens=False)


def _or_inf(value: float) -> float:
    return math.inf if math.isnan(value) else float(value)
