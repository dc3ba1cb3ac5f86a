"""The result of a gradient check: its table, and the faults in words."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Cell:
    """One entry of the table: one gradient (or value) of one way to call the kernel.

    Attributes:
        run: How the kernel was called: "whole", "chunks of 8", "each sequence alone", "lengths 9,4", ...
        steps: Number of time steps.
        cotangent: What the loss was taken of: "outputs", "final state", "both", or "value" (no gradient: the result
            itself), or "call" (a fault of the call).
        target: What the gradient is of: "inputs", "state", or a parameter's name.
        right: Whether the error is within the tolerance.
        error: Error of the whole gradient relative to the truth.
        tolerance: Largest relative error that would pass at the worst time step.
        truth: What it was compared with.
        lag, seam, step: Where it is wrong, as far as one of them describes it. A seam at j lies between steps j-1 and
        j.
        what: The place and the kind of the error in words, "" where the cell is right.
    """

    run: str
    steps: int
    cotangent: str
    target: str
    right: bool
    error: float
    tolerance: float
    truth: str
    lag: int | None = None
    seam: int | None = None
    step: int | None = None
    what: str = ""

    @property
    def row(self) -> str:
        """The row of the table: "outputs -> inputs"."""
        return f"{self.cotangent} -> {self.target}"

    @property
    def column(self) -> str:
        """The column of the table: "T=9", or the run."""
        return f"T={self.steps}" if self.run == "whole" else self.run

    @property
    def text(self) -> str:
        """The entry as the printed table shows it."""
        if self.right:
            return "ok"
        for letter, value in (("seam", self.seam), ("lag", self.lag), ("step", self.step)):
            if value is not None:
                return f"{self.error:.1g} {letter} {value}"
        return f"{self.error:.1g}" if self.error < float("inf") else "WRONG"


@dataclass(frozen=True)
class GradcheckResult:
    """Result of `gradcheck_recurrence`; true where every cell is right.

    Attributes:
        table: All cells.
        chunk: The chunk size that lengths and seams were chosen by.
        notes: What could not be checked, or limits what was.
    """

    table: tuple[Cell, ...]
    chunk: int
    notes: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return all(cell.right for cell in self.table)

    @property
    def wrong(self) -> tuple[Cell, ...]:
        """The cells that are not right."""
        return tuple(cell for cell in self.table if not cell.right)

    @property
    def faults(self) -> tuple[str, ...]:
        """One sentence per fault: what is wrong, where, in which runs, and by how much.

        What follows from another fault is left to the table: other runs and sums of cotangents of a row that is wrong
        already.
        """
        rows = {cell.row for cell in self.wrong if cell.run == "whole"}
        parts = {
            (cell.run, cell.target)
            for cell in self.wrong
            if cell.cotangent not in ("both", "value")
        }
        groups: dict[tuple[str, bool], list[Cell]] = {}
        order = sorted(self.wrong, key=lambda cell: _ORDER.get(cell.cotangent, len(_ORDER)))
        for cell in order:
            follows = cell.run not in ("whole", "call") and cell.row in rows
            follows |= cell.cotangent == "both" and (cell.run, cell.target) in parts
            if not follows:
                groups.setdefault((cell.row, cell.run == "whole"), []).append(cell)
        return tuple(_sentence(cells, self.table) for cells in groups.values())

    def __str__(self) -> str:
        count = len(self.table)
        if self:
            head = f"gradcheck_recurrence: right in all {count} cells (chunk {self.chunk})"
        else:
            head = f"gradcheck_recurrence: WRONG in {len(self.wrong)} of {count} cells (chunk {self.chunk})"
        whole = [cell for cell in self.table if cell.run == "whole"]
        other = [cell for cell in self.table if cell.run not in ("whole", "call")]
        calls = [cell for cell in self.table if cell.run == "call"]
        lines = [head, *_grid(whole), "", *_grid(other)]
        called = ", ".join(f"{cell.target}: {'ok' if cell.right else 'WRONG'}" for cell in calls)
        lines += ["", called] if called else []
        lines += ["", *(f"- {fault}" for fault in self.faults)] if self.faults else []
        lines += ["", *(f"Note: {note}" for note in self.notes)] if self.notes else []
        return "\n".join(lines)

    __repr__ = __str__


_ORDER = {"run": 0, "call": 1, "value": 2}
"""Faults of calls and values come first: gradients are wrong with them."""


def _sentence(cells: list[Cell], table: tuple[Cell, ...]) -> str:
    # Of runs of the whole the longest shows most; of other runs the simplest comes first.
    named = max(cells, key=lambda cell: (bool(cell.what), cell.steps))
    if named.cotangent == "call":
        return f"{named.what}."
    error = max(cell.error for cell in cells)
    size = f"error {error:.2g}, allowed {named.tolerance:.1g}"
    what = f": {named.what}" if named.what else ""
    return f"{named.row} ({_where(cells, table)}){what}; {size}; compared with {named.truth}."


def _where(cells: list[Cell], table: tuple[Cell, ...]) -> str:
    """The runs of a fault: all lengths, some lengths, or the names of other runs."""
    columns = list(dict.fromkeys(cell.column for cell in cells))
    if cells[0].run != "whole":
        return ", ".join(columns)
    every = dict.fromkeys(c.column for c in table if c.row == cells[0].row and c.run == "whole")
    return "all lengths" if len(columns) == len(every) > 1 else ", ".join(columns)


def _grid(cells: list[Cell]) -> list[str]:
    """Rows by what is checked, columns by run."""
    columns = list(dict.fromkeys(cell.column for cell in cells))
    rows = list(
        dict.fromkeys(
            cell.row for cell in sorted(cells, key=lambda cell: cell.cotangent != "value")
        )
    )
    if not rows:
        return []
    text = {(cell.row, cell.column): cell.text for cell in cells}
    body = [[row, *(text.get((row, column), "-") for column in columns)] for row in rows]
    table = [["", *columns], *body]
    widths = [max(len(line[k]) for line in table) for k in range(len(columns) + 1)]
    return [
        "  ".join(part.ljust(w) for part, w in zip(line, widths, strict=True)).rstrip()
        for line in table
    ]
