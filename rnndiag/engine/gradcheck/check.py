"""`rnndiag.gradcheck_recurrence`: is the gradient of a recurrent kernel right, at every lag and every seam?"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from rnndiag.engine.gradcheck.comparisons import Case, Run, call_cells, cases, compare, runs
from rnndiag.engine.gradcheck.forward_order import forward_order
from rnndiag.engine.gradcheck.gradients import Cotangent
from rnndiag.engine.gradcheck.hints import describe, is_rounding
from rnndiag.engine.gradcheck.lengths import length_cells, read_lengths
from rnndiag.engine.gradcheck.locate import ByBackward, ByDifferences, Locator, PathTruth, Windows
from rnndiag.engine.gradcheck.nested import flatten
from rnndiag.engine.gradcheck.parameters import held_in
from rnndiag.engine.gradcheck.patterns import Place
from rnndiag.engine.gradcheck.result import Cell, GradcheckResult
from rnndiag.engine.gradcheck.setup import (
    Setup,
    check_arguments,
    find,
    full_length,
    prepare,
    takes_two,
)
from rnndiag.engine.gradcheck.truths import OtherFunction
from rnndiag.errors import RnndiagError

LONGEST_LOCATED = 34
"""Most steps for which paths are measured one by one: their number grows quadratically."""

LEAST_LOCATED = 12
"""Least steps to which runs other than the whole are cut: two chunks and a rest show what is lost at a seam."""
REFUSALS = (ValueError, NotImplementedError, AssertionError)
"""Exceptions by which a kernel rejects a length. That is noted in the result, and is no fault."""

HALF_PRECISION = (
    "an error of the size of half-precision rounding (float16, bfloat16): is a state kept in it?"
)
NO_PATH, ZERO = "no gradient arrives", "the gradient is zero"

Compared = tuple[Cell, Tensor | None, Tensor | None]


def gradcheck_recurrence(
    kernel: Callable[..., Any],
    reference: Callable[..., Any] | None = None,
    *,
    inputs: Any,
    state: Any,
    chunk: int | None = None,
    lengths: Sequence[int] | Tensor | None = None,
    dtype: torch.dtype | None = None,
    parameters: nn.Module | Mapping[str, Tensor] | Iterable[Tensor] | None = None,
    batch_first: bool | None = None,
    rtol: float | None = None,
    seed: int = 0,
) -> GradcheckResult:
    """Check the backward pass of a recurrent kernel, path by path.

    The gradient of a random loss of the outputs, of each part of the final state, and of both is compared, for every
    parameter, every input and every part of the initial state, at lengths around the chunk size. Truths that share no
    code with the kernel's backward pass: the composition of the kernel from chunks, through the final state and its
    cotangent; a float64 reference; and finite differences of the forward pass (v·Ju against u·J'v).

    Args:
        kernel: `kernel(inputs, state) -> (outputs, final state)`: a module, a function, or a function over
            parameters. Its parameters are found automatically.
        reference: The same function as a plain loop of torch operations, run in float64. Its parameters are those of
            the kernel, or tensors of the same names or values.
        inputs: A tensor (T, B, ...) or (B, T, ...), or a tuple of such.
        state: The initial state: a tensor, or a tuple, list or dict of tensors. Random values reveal more faults than
            zeros.
        chunk: Steps that the kernel treats at once. Default: a power of two below T / 2.
        lengths: B lengths of 0..T: also check `kernel(inputs, state, lengths)`.
        dtype: Run the kernel in this dtype, with inputs, state and parameters cast to it. Default: as they are.
        parameters: The parameters to check, if they cannot be found automatically.
        batch_first: Whether inputs are (B, T, ...). Default: found from which steps depend on which.
        rtol: Relative tolerance. Default: by the coarsest dtype, 1e-9 in float64 to 6e-2 in bfloat16.
        seed: Seed of the random cotangents and directions.

    Returns:
        A result that is true if every cell is right. Printed, it is a table with the faults in words; `.table` holds
        the cells, each with its error and, if wrong, the lag, seam or step.

    Raises:
        BadArgument: The shapes do not fit, or time and batch cannot be distinguished.
        NotSupported: A dtype without a tolerance.

    Example:
        >>> rnn = torch.nn.GRU(3, 4)
        >>> result = rnndiag.gradcheck_recurrence(rnn, inputs=torch.randn(9, 2, 3), state=torch.randn(1, 2, 4))
        >>> bool(result)
        True
    """
    check_arguments(flatten(inputs, "inputs"), chunk)
    plain = kernel if lengths is None or takes_two(kernel) else full_length(kernel, len(lengths))
    found = find(plain, inputs, state, parameters)
    other = None if reference is None else find(reference, inputs, state, name="reference")
    held = (*found.held, *(other.held if other else ()))
    generator = torch.Generator().manual_seed(seed)
    with held_in(held, dtype):
        setup = prepare(
            kernel,
            found,
            other,
            (inputs, state),
            dtype=dtype,
            chunk=chunk,
            batch_first=batch_first,
            rtol=rtol,
            generator=generator,
        )
        return _check(setup, lengths)


def _check(setup: Setup, lengths: Sequence[int] | Tensor | None) -> GradcheckResult:
    """Compare every run, then locate the wrong paths."""
    variable = [] if lengths is None else read_lengths(lengths, setup)
    cells: list[Cell] = []
    refused: list[str] = []
    at_length: dict[int, list[Case]] = {}
    wrong: dict[str, list[tuple[Run, Case, list[Cell]]]] = {}
    idle: set[Cell] = set()
    for run in runs(setup):
        steps = run.point.inputs[0].shape[setup.layout.time]
        refusal = f"T={steps}" if run.name == "whole" else run.name
        with _noted_errors(run.name, steps, refusal, cells, refused):
            if steps not in at_length:
                at_length[steps] = cases(setup, run.point)
            for case in at_length[steps]:
                found = list(compare(setup, run, case))
                idle |= {cell for cell, gradient, _ in found if cell.right and _is_zero(gradient)}
                described = [_described(setup, run, one) for one in found]
                cells += described
                faulty = [cell for cell in described if not cell.right]
                if faulty:
                    wrong.setdefault(run.name, []).append((run, case, faulty))
    cells += _calls(setup, at_length)
    for own in variable:
        name = f"lengths {','.join(map(str, own))}"
        with _noted_errors(name, setup.steps, f"lengths {own}", cells, refused):
            cells += list(length_cells(setup, own))
    places = _places(setup, wrong)
    cells = _with_ends(_with_rounding(cells, setup.tolerance.eps), setup.point.state_names, idle)
    placed = [_placed(cell, places) for cell in _with_order(setup, cells)]
    return GradcheckResult(
        tuple(_without_differences(placed)),
        setup.chunk,
        (*setup.notes, *refused),
    )


@contextmanager
def _noted_errors(
    run: str, steps: int, refusal: str, cells: list[Cell], refused: list[str]
) -> Iterator[None]:
    """Note an error of the kernel: a refusal of a length among `refused`, any other as a cell of the table."""
    try:
        yield
    except RnndiagError:
        raise
    except REFUSALS as error:
        refused.append(
            f"the kernel refuses {refusal} ({type(error).__name__}: {_first_line(error)})."
        )
    except Exception as error:  # noqa: BLE001 - a kernel may raise anything; the table says what
        cells.append(_raised(run, steps, error))


def _calls(setup: Setup, at_length: Mapping[int, list[Case]]) -> list[Cell]:
    try:
        both = at_length[setup.steps][-1]
        return call_cells(setup, both)
    except Exception as error:  # noqa: BLE001 - as above
        return [_raised("call", setup.steps, error)]


def _raised(run: str, steps: int, error: Exception) -> Cell:
    """The table cell for a run that raised."""
    what = f"raises {type(error).__name__}: {_first_line(error)}"
    return Cell(run, steps, "run", "any", False, float("inf"), 0.0, "itself", what=what)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0][:200]


def _described(setup: Setup, run: Run, compared: Compared) -> Cell:
    """The cell; if its gradient is wrong, with a sentence on what is wrong and where."""
    cell, found, truth = compared
    if cell.right:
        return cell
    if cell.cotangent == "value":
        begins = "" if cell.step is None else f"from step {cell.step} on"
        return replace(cell, what=begins + (", a seam" if cell.seam is not None else ""))
    layout, point = setup.layout, run.point
    if found is None or _is_zero(found):
        return replace(cell, what=NO_PATH if found is None else ZERO)
    if cell.target in point.parameters:
        return replace(cell, what=describe(found, truth, 0, None))
    if cell.target in point.input_names:
        return replace(cell, what=describe(found, truth, found.ndim - 1, layout.batch, layout.time))
    batch = layout.state_batch[point.state_names.index(cell.target)]
    return replace(cell, what=describe(found, truth, found.ndim - 1, batch))


def _is_zero(gradient: Tensor | None) -> bool:
    return gradient is None or not bool(gradient.any())


Places = dict[tuple[str, str, str], Place]
"""(run, cotangent, target) -> where it is wrong."""


def _places(setup: Setup, wrong: Mapping[str, list[tuple[Run, Case, list[Cell]]]]) -> Places:
    """Measure the paths of every kind of fault once, at the longest length that is affordable."""
    found: Places = {}
    truths: dict[str, PathTruth] = {}
    windows: Windows = {}
    in_whole = {(c.cotangent, c.target) for _, _, cells in wrong.get("whole", []) for c in cells}
    for name, faults in wrong.items():
        if faults[0][0].strided:  # a loss on single steps would have other strides
            continue
        by_cotangent: dict[str, list[tuple[Run, Case, list[Cell]]]] = {}
        for fault in faults:
            by_cotangent.setdefault(fault[1].cotangent.name, []).append(fault)
        parts = [key for key in by_cotangent if key != "both"]
        for cotangent, group in by_cotangent.items():
            known = {t for c, t in in_whole if c == cotangent} if name != "whole" else set()
            # One composition suffices to find the path that a call loses; others lose it at their own seams.
            known |= {t for run, c, t in found if c == cotangent and run != "whole"}
            # The sum of two cotangents is wrong where one of them is.
            known |= {
                c.target
                for key in parts
                if cotangent == "both"
                for _, _, cells in by_cotangent[key]
                for c in cells
            }
            run, case, cells = _affordable(setup, group)
            targets = tuple(
                c.target for c in cells if c.cotangent != "value" and c.target not in known
            )
            places = _located(setup, run, case.cotangent, targets, cells, truths, windows)
            found |= {(name, cotangent, target): place for target, place in places.items() if place}
    return found


def _affordable(
    setup: Setup, group: list[tuple[Run, Case, list[Cell]]]
) -> tuple[Run, Case, list[Cell]]:
    """The longest run whose paths can be measured one by one, else the shortest one."""
    steps = [run.point.inputs[0].shape[setup.layout.time] for run, _, _ in group]
    fitting = [k for k, n in enumerate(steps) if n <= LONGEST_LOCATED]
    return (
        group[max(fitting, key=lambda k: steps[k])] if fitting else group[steps.index(min(steps))]
    )


def _located(
    setup: Setup,
    run: Run,
    cotangent: Cotangent,
    targets: tuple[str, ...],
    cells: list[Cell],
    truths: dict[str, PathTruth],
    windows: Windows,
) -> dict[str, Place | None]:
    """Places of some targets of one run; a run that is too long is cut, as its fault may show in a part of it."""
    steps = run.point.inputs[0].shape[setup.layout.time]
    point = run.point
    longest = min(LONGEST_LOCATED, max(2 * setup.chunk + 2, LEAST_LOCATED))
    if steps > longest and run.name != "whole":
        steps = longest
        point = replace(point, inputs=setup.layout.steps(point.inputs, 0, steps))
        outputs = tuple(
            v if v is None else v.narrow(setup.layout.time, 0, steps) for v in cotangent.outputs
        )
        cotangent = replace(cotangent, outputs=outputs)
    found: dict[str, Place | None] = {}
    for truth_name in dict.fromkeys(cell.truth for cell in cells if cell.target in targets):
        own = tuple(
            t for t in targets if any(c.target == t and c.truth == truth_name for c in cells)
        )
        if truth_name not in truths:
            truths[truth_name] = _path_truth(setup, truth_name)
        locator = Locator(
            run.function, truths[truth_name], setup.layout, setup.chunk, run.without, windows
        )
        try:
            found |= locator.places(point, cotangent, own)
        except Exception:  # noqa: BLE001 - the fault stands without its place
            continue
    return found


def _path_truth(setup: Setup, name: str) -> PathTruth:
    """What paths are compared with: the same truth as the cell."""
    time, rtol, eps = setup.layout.time, setup.tolerance.rtol, setup.tolerance.eps
    if name == "reference" and setup.reference is not None:
        return ByBackward(setup.reference, time, rtol, eps)
    if name == "dot product":
        return ByDifferences(
            setup.forward, time, max(rtol, setup.forward_rtol), eps, setup.generator
        )
    return ByBackward(OtherFunction("the whole", setup.kernel), time, rtol, eps)


def _placed(cell: Cell, places: Places) -> Cell:
    """The cell with the place of its fault; without one of its own, that of the whole run."""
    if cell.right or cell.seam is not None or cell.cotangent in ("value", "call", "run"):
        return cell
    own = places.get((cell.run, cell.cotangent, cell.target))
    place = own or places.get(("whole", cell.cotangent, cell.target))
    if place is None and cell.cotangent == "both":
        parts = [
            p for (run, _, target), p in places.items() if run == cell.run and target == cell.target
        ]
        place = parts[0] if len({p.text for p in parts}) == 1 else None
    if place is None:
        return cell
    what = "; ".join(word for word in (place.text, cell.what) if word)
    return replace(cell, lag=place.lag, seam=place.seam, step=place.step, what=what)


def _with_ends(cells: list[Cell], states: tuple[str, ...], idle: set[Cell]) -> list[Cell]:
    """Name the end of a call where no cotangent enters, and its start where no gradient leaves.

    `idle` cells are zero by definition, so they do not show that the cotangent entered.
    """
    reached = {
        (c.run, c.steps, c.cotangent)
        for c in cells
        if c.what not in (NO_PATH, ZERO) and c.target not in states and c not in idle
    }

    def named(cell: Cell) -> Cell:
        if cell.what not in (NO_PATH, ZERO):
            return cell
        if (
            cell.cotangent.startswith("final")
            and (cell.run, cell.steps, cell.cotangent) not in reached
        ):
            return replace(
                cell,
                seam=cell.steps,
                what=f"{cell.what}, lost at the end of the call (seam {cell.steps})",
            )
        if cell.target in states:
            return replace(
                cell, seam=0, what=f"{cell.what}, lost at the start of the call (seam 0)"
            )
        return cell

    return [named(cell) for cell in cells]


def _with_rounding(cells: list[Cell], eps: float) -> list[Cell]:
    """Report half precision if every error in a row has the size of its rounding."""
    largest: dict[str, float] = {}
    for cell in cells:
        largest[cell.row] = max(largest.get(cell.row, 0.0), cell.error)
    hint = HALF_PRECISION
    values_agree = all(cell.right for cell in cells if cell.cotangent == "value")
    return [
        replace(cell, what="; ".join(filter(None, (cell.what, hint))))
        if not (cell.right or cell.cotangent == "call")
        and is_rounding(largest[cell.row], eps)
        and (cell.cotangent == "value" or (values_agree and _all_rounding(cells, eps)))
        else cell
        for cell in cells
    ]


def _without_differences(cells: list[Cell]) -> list[Cell]:
    """Drop places found by finite differences of a forward pass in half precision: those are steps or zero."""
    if not any(c.cotangent == "value" and HALF_PRECISION in c.what for c in cells):
        return cells
    words = "finite differences of values that are rounded say little: mend the values first"
    return [
        replace(cell, what=words, lag=None, seam=None, step=None)
        if not cell.right and cell.truth == "dot product"
        else cell
        for cell in cells
    ]


def _with_order(setup: Setup, cells: list[Cell]) -> list[Cell]:
    """Report the order of gates with which outputs that are wrong from the first step on would be right."""
    first = [c for c in cells if (c.run, c.cotangent, c.step) == ("whole", "value", 0)]
    words = forward_order(setup) if first else ""
    return [replace(c, what=f"{c.what}; {words}") if words and c in first else c for c in cells]


def _all_rounding(cells: list[Cell], eps: float) -> bool:
    """Whether no gradient is off by more than rounding. A lost path may be as small in one cell, but not in all."""
    return all(is_rounding(cell.error, eps) for cell in cells if not cell.right)
