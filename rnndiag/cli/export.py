"""`rnndiag export`: the numbers of a run as csv, json or a LaTeX table. Needs numpy only."""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Iterator
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from rnndiag.run.run import Run
    from rnndiag.store.measurement import Series

_FACTS = frozenset(("unit", "scale"))
_FORMULA_MARKS = ("=", "+", "-", "@", "\t", "\r")


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.epilog = (
        "csv: one row per number, with step, phase, quantity, layer, unit, scale and one column per dim "
        "(a dim called like one of these: unit_dim). json: one "
        "object per quantity and layer with nested lists; NaN and padding are null, infinities the strings 'inf' and "
        "'-inf'. "
        "For pandas and xarray: rnndiag.open_run(RUN).to_frame() and .to_xarray()."
    )
    parser.add_argument("run", metavar="RUN", help="run directory")
    parser.add_argument(
        "-o",
        "--output",
        default="-",
        metavar="FILE",
        help="file to write, .csv or .json (default: csv to the screen)",
    )
    parser.add_argument("--format", choices=("csv", "json"), help="default: by the file's ending")
    parser.add_argument(
        "--latex",
        action="store_true",
        help="the headline numbers with their errors as a LaTeX table, in place of all numbers",
    )
    parser.add_argument(
        "-q", "--quantity", action="append", metavar="Q", help="only this quantity; may be repeated"
    )
    parser.add_argument(
        "-l", "--layer", action="append", metavar="L", help="only this layer; may be repeated"
    )
    parser.add_argument(
        "--steps", metavar="A:B", help="only recordings from step A to step B, both included"
    )
    parser.add_argument(
        "--rank", type=int, metavar="R", help="only this rank (default: ranks pooled)"
    )


def run(args: argparse.Namespace) -> int:
    """Write the file and print the number of values in it; returns the exit code."""
    from rnndiag.errors import BadConfig, RunUnreadable
    from rnndiag.run.run import open_run
    from rnndiag.store.reader import listed
    from rnndiag.store.whole_files import whole_file

    if args.latex:
        return _latex(args)
    ending = args.output.lower().rpartition(".")[2]
    form = (
        args.format
        or (ending if ending in ("csv", "json") else None)
        or ("csv" if args.output == "-" else None)
    )
    if form is None:
        raise BadConfig(
            f"{args.output} ends in neither .csv nor .json.", "Say which with --format."
        )
    one = open_run(args.run)
    found = list(chosen(one, args))
    if not found:
        raise RunUnreadable(
            f"{one.name} has nothing to export at steps {args.steps}.",
            f"It has steps {listed(one.steps)}.",
        )
    write = {"csv": write_csv, "json": write_json}[form]
    if args.output == "-":
        write(one, found, sys.stdout)
        return 0
    with whole_file(args.output, durable=False) as raw:
        file = io.TextIOWrapper(raw, encoding="utf-8", newline="", write_through=True)
        count = write(one, found, file)
        file.detach()
    sys.stderr.write(f"{args.output}: {count} numbers of {len(found)} quantities and layers\n")
    for problem in one.problems:
        sys.stderr.write(f"rnndiag: {problem}\n")
    return 0


def _latex(args: argparse.Namespace) -> int:
    from pathlib import Path

    from rnndiag.cli.check import write_file
    from rnndiag.report.latex_table import latex_table
    from rnndiag.report.write_report import report_context

    text = latex_table(report_context(args.run))
    if args.output == "-":
        sys.stdout.write(text)
    else:
        write_file(Path(args.output), text)
    return 0


def chosen(one: Run, args: argparse.Namespace) -> Iterator[Series]:
    """All selected series, phase by phase."""
    from rnndiag.run.frames import chosen as keys
    from rnndiag.store.reader import no_recordings

    steps = _steps(args.steps)
    if not len(one):
        raise no_recordings(one)
    one.refuse_unknown(args.rank, None)
    wanted = [pair for quantity in args.quantity or [None] for pair in keys(one, quantity, None)]
    for layer in args.layer or ():
        if layer not in one.layers and not any(of == layer for _, of in wanted):
            one.layers_for(one.quantities[0], layer)
    for quantity, layer in dict.fromkeys(wanted):
        if args.layer and layer not in args.layer:
            continue
        for phase in one.phases:
            series = one.collector.series(quantity, layer, steps, args.rank, phase)
            if series is not None:
                yield series


def _steps(text: str | None) -> slice | None:
    from rnndiag.errors import BadConfig

    if text is None:
        return None
    low, colon, high = text.partition(":")
    try:
        first = int(low) if low else None
        last = (int(high) if high else None) if colon else first
    except ValueError:
        raise BadConfig(
            f"--steps {text!r} is not understood.", "Write --steps 100:900, 100: or :900."
        ) from None
    return slice(first, last)


def write_csv(one: Run, found: list[Series], file: IO[str]) -> int:
    """Write one row per number; return the number of rows."""
    import csv

    from rnndiag.run.frames import column_of, columns

    fixed = ["step", "phase", "quantity", "layer", "unit", "scale"]
    dims = list(dict.fromkeys(column_of(dim, _FACTS) for s in found for dim in s.dims[1:]))
    head = [*fixed, *dims, "value"]
    rows = csv.writer(file, lineterminator="\n")
    rows.writerow(map(_cell, head))
    count = 0
    for series in found:
        table: dict[str, Any] = columns(series, _FACTS)
        size = len(table["step"])
        table |= {"unit": [series.unit] * size, "scale": [series.scale] * size}
        table["value"] = [str(value) for value in table["value"]]
        cells = [map(_cell, table[name]) if name in table else [""] * size for name in head[:-1]]
        rows.writerows(zip(*cells, table["value"], strict=True))
        count += size
    return count


def _cell(value: Any) -> Any:
    """A cell of the csv file: text that a spreadsheet would run as a formula gets an apostrophe, and control
    characters are escaped.

    Names in a run may come from strangers.
    """
    from rnndiag.store.safe_text import printable

    if not isinstance(value, str):
        return value
    is_formula = value.lstrip().startswith(_FORMULA_MARKS) or value.startswith(_FORMULA_MARKS)
    return printable("'" + value if is_formula else value)


def write_json(one: Run, found: list[Series], file: IO[str]) -> int:
    """Write one object per quantity and layer; returns the number of values."""
    import json

    file.write(
        f'{{"format": "rnndiag export 1", "run": {json.dumps(one.name)},\n"status": {json.dumps(str(one.status))},\n'
    )
    file.write('"series": [')
    count = 0
    for at, series in enumerate(found):
        row = {
            "quantity": series.name,
            "layer": series.layer,
            "phase": series.phase,
            "unit": series.unit,
            "scale": series.scale,
            "dims": list(series.dims),
            "steps": series.steps.tolist(),
            "coordinates": {dim: list(labels) for dim, labels in series.coordinates.items()},
            "lengths": {dim: lengths.tolist() for dim, lengths in series.lengths.items()},
            "values": _listed(series.values),
        }
        file.write(("," if at else "") + "\n" + json.dumps(row, allow_nan=False))
        count += series.values.size
    file.write("\n]}\n")
    return count


def _listed(values: np.ndarray) -> Any:
    """Nested lists as strict JSON can hold them."""
    import numpy as np

    if np.iscomplexobj(values):
        values = np.stack([values.real, values.imag], -1)
    if values.dtype.kind != "f":
        return values.tolist()
    short = np.array([float(str(value)) for value in values.reshape(-1)], object).reshape(
        values.shape
    )
    short[np.isnan(values)] = None
    short[np.isposinf(values)] = "inf"
    short[np.isneginf(values)] = "-inf"
    return short.tolist()
