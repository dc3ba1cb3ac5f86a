"""The headline numbers of a run as a LaTeX table: reach and λ₁ with their standard errors, by layer."""

from __future__ import annotations

import math

from rnndiag.report.context import Context
from rnndiag.report.ticks import number
from rnndiag.stats.headline import run_window

_SPECIAL = {
    "\\": r"\textbackslash{}",
    **{mark: f"\\{mark}" for mark in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
}


def escaped(text: str) -> str:
    """Text with all special characters of LaTeX escaped; characters outside the usual fonts become a question mark."""
    return "".join(_SPECIAL.get(one, one if one.isprintable() else "?") for one in text)


def with_error(value: float, error: float) -> str:
    r"""`31.9 \pm 0.6`, with two digits of the error; a dash if there is no value."""
    if math.isnan(value):
        return "--"
    if math.isinf(value):
        return r"$\infty$" if value > 0 else r"$-\infty$"
    if not (math.isfinite(error) and error > 0):
        return f"${value:.3g}$"
    places = max(0, 1 - int(f"{error:.1e}".partition("e")[2]))
    return f"${value:.{places}f} \\pm {error:.{places}f}$"


def latex_table(context: Context) -> str:
    """One row per layer, as a `booktabs` table with the step that each number is from in its caption.

    Args:
        context: The run with its judged recordings.
    """
    run = context.run
    judged = run.judged()
    rows = [_row(context, layer) for layer in context.layers]
    span = f"steps {judged[0]} to {judged[-1]}" if judged.size else "no recording"
    caption = (
        f"{escaped(run.name)}: reach (lag that holds 90\\,\\% of the credit) and shortest window with a bias of at "
        f"most 10\\,\\%, medians of {span}; $\\lambda_1$ from the last recording that has it. "
        "$\\pm$: one standard error, where losses or sequences were sampled."
    )
    return "\n".join(
        [
            "% needs \\usepackage{booktabs}",
            "\\begin{table}",
            "  \\centering",
            "  \\begin{tabular}{lrrrr}",
            "    \\toprule",
            "    layer & $T$ & reach & window & $\\lambda_1$ \\\\",
            "    \\midrule",
            *(f"    {' & '.join(row)} \\\\" for row in rows),
            "    \\bottomrule",
            "  \\end{tabular}",
            f"  \\caption{{{caption}}}",
            "\\end{table}",
            "",
        ]
    )


def _row(context: Context, layer: str) -> tuple[str, ...]:
    reach, length = context.reach(layer), context.time_steps(layer)
    return (
        escaped(layer),
        "--" if length is None else str(length),
        "--" if reach is None else with_error(float(reach), reach.error),
        _window(context, layer),
        _exponent(context, layer),
    )


def _window(context: Context, layer: str) -> str:
    if ("window_bias", layer) not in context.run:
        return "--"
    found = run_window(context.run, layer=layer)
    return number(found.steps) if math.isfinite(found.steps) else "--"


def _exponent(context: Context, layer: str) -> str:
    found = context.last("lyapunov_exponents", layer)
    if found is None:
        return "--"
    values = found.sel(part_stat="value").values
    first = int(values.argmax())
    # The larger of the two errors: over sequences, and over blocks of time.
    errors = [float(found.sel(part_stat=of).values[first]) for of in ("se_sequences", "se_blocks")]
    known = [error for error in errors if math.isfinite(error)]
    return with_error(float(values[first]), max(known, default=math.nan))
