"""`rnndiag show`: the content of a run on one screen, or the meaning of the quantities."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rnndiag.run.run import Run
    from rnndiag.store.measurement import Series

_PROBLEMS_SHOWN = 50
_EPILOG = "exit codes: 0 shown; 2 usage error; 3 the run cannot be read"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.epilog = _EPILOG
    parser.add_argument(
        "runs",
        nargs="*",
        metavar="RUN [QUANTITY]",
        help="run directory, or a pattern in quotes; last, the quantity to show",
    )
    parser.add_argument(
        "-q",
        "--quantity",
        metavar="Q",
        help="the quantity to show: its meaning and its range per layer",
    )
    parser.add_argument("-l", "--layer", metavar="L", help="only this layer")
    parser.add_argument("--step", type=int, metavar="N", help="only this training step")
    parser.add_argument(
        "--registry",
        action="store_true",
        help="list every quantity that rnndiag knows, with its meaning",
    )
    parser.add_argument(
        "--markdown", action="store_true", help="the registry as a Markdown table, for docs"
    )
    parser.add_argument("--json", action="store_true", help="print the overview as JSON")
    parser.add_argument(
        "--salvage", action="store_true", help="also read recordings whose open.json is damaged"
    )


def run(args: argparse.Namespace) -> int:
    """Print the overview, one quantity, or the registry of quantities."""
    from rnndiag.errors import BadConfig
    from rnndiag.run.run import open_run
    from rnndiag.run.runs import open_runs
    from rnndiag.store.safe_text import printable
    from rnndiag.store.text import to_json

    if args.registry:
        sys.stdout.write(registry_markdown() if args.markdown else registry_text())
        return 0
    _quantity_after_runs(args)
    _refuse_unclear(args)
    if not args.runs:
        raise BadConfig("No run was named.", "Write: rnndiag show RUN, or rnndiag show --registry.")
    runs = (
        [open_run(args.runs[0], args.salvage)]
        if len(args.runs) == 1 and not _is_pattern(args.runs[0])
        else open_runs(args.runs)
    )
    missing = args.runs if len(args.runs) > 1 else ()
    if args.json:
        described: Any = [facts(one) for one in runs]
        sys.stdout.write(to_json({"runs": described}, indent=1).decode() + "\n")
        return 0
    for one in runs:
        lines = (
            quantity_lines(one, args.quantity, args.layer, args.step)
            if args.quantity
            else overview(one)
        )
        sys.stdout.write("".join(printable(line) + "\n" for line in lines))
    for sentence in getattr(runs, "unreadable", ()):
        sys.stdout.write(f"not shown: {printable(sentence)}\n")
    return 3 if any(not _is_pattern(name) and not os.path.isdir(name) for name in missing) else 0


def registry_text() -> str:
    """All registered quantities as text."""
    from rnndiag.store.quantities import QUANTITIES

    lines = []
    group = ""
    for q in QUANTITIES.values():
        if q.group != group:
            group = q.group
            lines.append(f"\n{group}")
        dims = " x ".join(q.dims) or "one number"
        lines.append(f"  {q.name:26s} {dims}; {q.unit}, {q.scale}\n      {q.meaning}")
    return "\n".join(lines).lstrip("\n") + "\n"


def registry_markdown() -> str:
    """All registered quantities as a Markdown table."""
    from rnndiag.store.quantities import QUANTITIES

    rows = ["| quantity | dims | unit | scale | of | meaning |", "|---|---|---|---|---|---|"]
    for q in QUANTITIES.values():
        meaning = q.meaning.replace("|", "\\|")
        rows.append(
            f"| `{q.name}` | {', '.join(q.dims) or '–'} | {q.unit} | {q.scale} | {q.owner} | {meaning} |"
        )
    return "\n".join(rows) + "\n"


def _quantity_after_runs(args: argparse.Namespace) -> None:
    """Treat `show RUN loss` as `show RUN -q loss`, unless a path of that name exists."""
    from rnndiag.store.quantities import QUANTITIES

    last = args.runs[-1] if len(args.runs) > 1 and args.quantity is None else None
    if last in QUANTITIES and not os.path.exists(last):
        args.quantity = args.runs.pop()


def _refuse_unclear(args: argparse.Namespace) -> None:
    """Raise for options that would have no effect."""
    from rnndiag.errors import BadConfig

    if args.markdown:
        raise BadConfig(
            "--markdown is for the registry.", "Write: rnndiag show --registry --markdown."
        )
    if args.layer is not None and args.quantity is None:
        raise BadConfig("--layer is for one quantity.", "Name it: rnndiag show RUN loss -l LAYER.")
    if args.json and args.quantity is not None:
        raise BadConfig(
            "--json is for the overview.", "Write: rnndiag export RUN -q QUANTITY --format json."
        )


def _is_pattern(text: str) -> bool:
    return any(mark in text for mark in "*?[") and "://" not in text


def when(seconds: float) -> str:
    """A time in UTC, to the minute."""
    from datetime import datetime, timezone

    try:
        return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    except (ValueError, OverflowError, OSError):
        return "an unknown time"


def facts(one: Run) -> dict[str, Any]:
    """The overview as data."""
    from rnndiag.health.diagnosis import diagnose

    steps = one.steps
    return {
        "path": str(one.path),
        "status": str(one.status),
        "reason": one.status.reason,
        "recordings": len(one),
        "phases": {phase: len(one.steps_of(phase)) for phase in one.phases},
        "steps": [int(steps[0]), int(steps[-1])] if steps.size else [],
        "ranks": list(one.ranks),
        "superseded": one.superseded,
        "bytes": one.size,
        "layers": list(one.layers),
        "quantities": {name: list(one.layers_of(name)) for name in one.quantities},
        "verdicts": _verdicts(one),
        "diagnosis": diagnose(one).as_json() if len(one.steps) else {},
        "provenance": one.provenance,
        "problems": [str(problem) for problem in one.problems],
    }


def _verdicts(one: Run) -> dict[str, int]:
    from collections import Counter

    return dict(Counter(outline.verdict for outline in one.outlines))


def overview(one: Run) -> Iterator[str]:
    """The overview as lines: status, provenance, layers, quantities, problems."""
    from rnndiag.store.text import size_text

    steps = one.steps
    span = f"steps {steps[0]} to {steps[-1]}" if steps.size else "no steps"
    phases = ", ".join(f"{len(one.steps_of(phase))} {phase}" for phase in one.phases)
    reason = f" ({one.status.reason})" if one.status.reason not in ("", "finished") else ""
    yield f"{one.path}: {one.status}{reason}"
    yield from _diagnosis_lines(one)
    yield f"  {len(one)} recordings{f' ({phases})' if len(one.phases) > 1 else ''}, {span}, {size_text(one.size)}"
    if len(one.ranks) > 1:
        yield f"  {len(one.ranks)} ranks ({', '.join(map(str, one.ranks))}): pooled, unless one is named"
    for start in one.starts:
        step = start.get("resumed_from_step")
        begun = f"resumed at step {step}" if step is not None else "started"
        yield f"  {begun} {when(float(start.get('started') or 0))}"
    yield from _provenance_lines(one.provenance)
    verdicts = ", ".join(f"{count} {verdict}" for verdict, count in _verdicts(one).items())
    yield f"  proofs: {verdicts or 'none'}"
    yield from _headline_lines(one)
    yield "  quantities"
    for name in one.quantities:
        yield f"    {_quantity_line(one, name)}"
    problems = one.problems
    yield "  problems" if problems else "  no problems seen (`rnndiag verify` reads every byte)"
    yield from (f"    {line}" for line in limited(problems))


def limited(problems: Sequence[object]) -> Iterator[str]:
    """Problems as lines; if there are very many, the first ones and their number."""
    for problem in problems[:_PROBLEMS_SHOWN]:
        yield str(problem)
    if len(problems) > _PROBLEMS_SHOWN:
        yield f"... and {len(problems) - _PROBLEMS_SHOWN} more"


def _provenance_lines(provenance: dict[str, Any]) -> Iterator[str]:
    from rnndiag.store.text import mapping

    if versions := mapping(provenance, "versions"):
        yield "  " + ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    git = mapping(provenance, "git")
    if git.get("commit"):
        yield f"  git {str(git['commit'])[:12]}{' with uncommitted changes' if git.get('dirty') else ''}"
    command = provenance.get("command")
    if command:
        yield f"  command: {' '.join(map(str, command)) if isinstance(command, list) else command}"


def _headline_lines(one: Run) -> Iterator[str]:
    from rnndiag.errors import RnndiagError

    if one.layers:
        yield "  layers"
    for layer in (*one.layers, *one.stacks):
        texts = []
        if ("credit_profile", layer) in one:
            try:
                texts.append(f"reach {one.reach(0.9, layer).text}")
            except RnndiagError as fault:
                texts.append(f"reach unknown: {fault.what}")
        yield f"    {layer}" + (f"   {', '.join(texts)}" if texts else "")
    yield from _seam_lines(one)


def _seam_lines(one: Run) -> Iterator[str]:
    """Lines on the gradient that the cut between chunks removes, from the newest recording that measured it."""
    noted = [o.notes["seam"] for o in one.outlines if isinstance(o.notes.get("seam"), dict)]
    if noted:
        yield "  across the seam"
        yield from (f"    {layer}   {sentence}" for layer, sentence in noted[-1].items())


def _diagnosis_lines(one: Run) -> Iterator[str]:
    """Heading, statement and further causes."""
    import textwrap

    from rnndiag.health.diagnosis import diagnose
    from rnndiag.health.diagnosis.finding import paragraphs

    if not len(one.steps):
        return
    for text in paragraphs(diagnose(one)):
        yield from textwrap.wrap(text, 110, initial_indent="  ", subsequent_indent="  ")


def _quantity_line(one: Run, name: str) -> str:
    from rnndiag.store.quantities import MODEL, QUANTITIES
    from rnndiag.store.text import counted

    known = QUANTITIES.get(name)
    layers = one.layers_of(name)
    of = "the model" if layers == (MODEL,) else counted(len(layers), "layer")
    if known is None:
        return f"{name:26s} {of}; not in this version's registry"
    return f"{name:26s} {of}; {' x '.join(known.dims) or 'one number'}; {known.unit}, {known.scale}"


def quantity_lines(
    one: Run, name: str, layer: str | None, step: int | None = None
) -> Iterator[str]:
    """One quantity: its meaning, and per layer its dims and its range over all recordings and at the last one."""
    from rnndiag.cli.text_picture import pictures
    from rnndiag.store.quantities import QUANTITIES

    yield f"{one.path}: {name}"
    if name in QUANTITIES:
        yield f"  {QUANTITIES[name].meaning}"
    for of in one.layers_for(name, layer):
        series = one.select(name, of, None if step is None else [step])
        dims = ", ".join(f"{dim} {size}" for dim, size in series.sizes.items())
        yield f"  {of}: {dims}; {series.unit}, {series.scale}; {series.values.dtype}"
        if series.pooling:
            yield f"    {series.pooling} ({series.ranks.min()} to {series.ranks.max()} ranks)"
        yield f"    all recordings: {_range(series, slice(None))}"
        yield f"    step {series.steps[-1]}: {_range(series, slice(-1, None))}"
        yield from pictures(series)
        for dim, labels in series.coordinates.items():
            yield f"    {dim}: {', '.join(labels)}"


def _range(series: Series, rows: slice) -> str:
    import numpy as np

    values = series.values[rows]
    if np.iscomplexobj(values):
        values = np.abs(values)
    finite = values[np.isfinite(values)].astype(np.float64)
    span = "nothing finite"
    if finite.size:
        span = f"{finite.min():.4g} to {finite.max():.4g}, median {np.median(finite):.4g}"
    rest = [
        (np.isposinf(values).sum(), "+inf"),
        (np.isneginf(values).sum(), "-inf"),
        (np.isnan(values).sum(), "NaN or padding"),
    ]
    return span + "".join(f", {count} {what}" for count, what in rest if count)
