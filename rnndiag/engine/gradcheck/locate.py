"""Finds which paths of a wrong gradient are wrong.

The outputs are weighted at one step t at a time: the gradient at input s then holds the paths from s to t alone. A
parameter acts at every step; its part at lag d is the gradient of the last d + 1 steps less that of the last d steps,
for a loss on the last step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from rnndiag.engine.gradcheck.finite_differences import Derivative, ForwardPass, draw_direction
from rnndiag.engine.gradcheck.gradients import Cotangent, Gradients, Point, gradients
from rnndiag.engine.gradcheck.layout import Layout
from rnndiag.engine.gradcheck.nested import Function
from rnndiag.engine.gradcheck.patterns import INITIAL, Paths, Place, name_paths
from rnndiag.engine.gradcheck.tolerance import ROUNDINGS
from rnndiag.engine.gradcheck.truths import OtherFunction

VISIBLE = 4
"""A path is judged only if its gradient is this many times the allowed error, so that its loss would show."""


@dataclass(frozen=True)
class Rows:
    """The gradient of one target as rows to compare: one row per time step of an input, a single row for other
    targets.

    found, truth: (rows, entries) in float64; error: (rows,), the truth's own error.
    """

    found: Tensor
    truth: Tensor
    error: Tensor

    def __sub__(self, other: Rows) -> Rows:
        return Rows(self.found - other.found, self.truth - other.truth, self.error + other.error)

    def wrong_and_visible(
        self, rtol: float, eps: float, scale: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Per row: whether it is wrong, and whether an error would be seen. `scale`: norms that rounding goes by."""
        sizes = torch.maximum(self.found.norm(dim=1), self.truth.norm(dim=1))
        scale = sizes if scale is None else scale
        allowed = rtol * scale + ROUNDINGS * eps * scale.max() + 4 * self.error
        errors = (self.found - self.truth).norm(dim=1)
        wrong = (errors > allowed) | ~errors.isfinite()
        return wrong, wrong | (sizes > VISIBLE * allowed)


class PathTruth(Protocol):
    """What the rows of a gradient are compared with."""

    @property
    def rtol(self) -> float: ...

    @property
    def eps(self) -> float: ...

    def rows(self, point: Point, cotangent: Cotangent, found: Gradients, name: str) -> Rows:
        """One target's gradient beside the truth."""


@dataclass(frozen=True)
class ByBackward:
    """Compares with the backward pass of another function."""

    other: OtherFunction
    time: int
    rtol: float
    eps: float
    _kept: list[tuple[Point, Cotangent, Gradients]] = field(default_factory=list)

    def rows(self, point: Point, cotangent: Cotangent, found: Gradients, name: str) -> Rows:
        if not (self._kept and self._kept[0][0] is point and self._kept[0][1] is cotangent):
            self._kept[:] = [(point, cotangent, self.other.gradients(point, cotangent))]
        own, truth = found.of.get(name), self._kept[0][2].of.get(name)
        like = own if own is not None else truth
        if like is None:
            return Rows(*(torch.zeros(1, 1, dtype=torch.float64),) * 2, torch.zeros(1))
        time = self.time if name in point.input_names else None
        a, b = (_as_rows(g, like, time) for g in (own, truth))
        return Rows(a, b, a.new_zeros(len(a)))


@dataclass(frozen=True)
class ByDifferences:
    """Compares with finite differences of the forward pass, along one direction per row."""

    forward: Callable[[Point], ForwardPass]
    time: int
    rtol: float
    eps: float
    generator: torch.Generator
    _directions: dict[str, Tensor] = field(default_factory=dict)
    _kept: dict[tuple[int, str], tuple[Point, list[Derivative]]] = field(default_factory=dict)

    def rows(self, point: Point, cotangent: Cotangent, found: Gradients, name: str) -> Rows:
        tensor = point.tensor(name)
        time = self.time if name in point.input_names else None
        u = self._directions.get(name)
        if u is None or u.shape != tensor.shape:
            u = self._directions[name] = draw_direction(tensor, self.generator)
        slices = [None] if time is None else range(tensor.shape[time])
        # A derivative holds for every cotangent: it is computed once per point and target.
        key = (id(point), name)
        if key not in self._kept:
            forward = self.forward(point)
            parts = [u if t is None else _only(u, self.time, t) for t in slices]
            self._kept[key] = point, [forward.derivative(name, part) for part in parts]
        along = [derivative.along(cotangent) for derivative in self._kept[key][1]]
        own = _as_rows(found.of.get(name), u, time) * _as_rows(u, u, time)
        truth, error = (
            torch.tensor(column, dtype=torch.float64) for column in zip(*along, strict=True)
        )
        return Rows(own.sum(1, keepdim=True).cpu(), truth[:, None], error)


def _as_rows(tensor: Tensor | None, like: Tensor, time: int | None) -> Tensor:
    own = torch.zeros_like(like) if tensor is None else tensor
    own = own.detach().double().to(like.device)
    return own.reshape(1, -1) if time is None else own.movedim(time, 0).flatten(1)


def _only(tensor: Tensor, dim: int, index: int) -> Tensor:
    """The tensor with zeros everywhere but at one index of `dim`."""
    copy = torch.zeros_like(tensor)
    copy.select(dim, index).copy_(tensor.select(dim, index))
    return copy


Windows = dict[int, tuple[Point, list[Point]]]
"""Key of a point -> the point, and its last 1, 2, ... steps, each from the state before them."""


@dataclass(frozen=True)
class Locator:
    """Names the wrong paths of one function at one point."""

    function: Function
    truth: PathTruth
    layout: Layout
    chunk: int
    without: tuple[str, ...] = ()
    windows: Windows = field(default_factory=dict)

    def places(
        self, point: Point, cotangent: Cotangent, targets: tuple[str, ...]
    ) -> dict[str, Place | None]:
        """A place for every target; None where no rule describes the wrong paths."""
        steps = point.inputs[0].shape[self.layout.time]
        of_outputs = any(v is not None for v in cotangent.outputs)
        by_path = [
            n for n in targets if n in point.input_names or (of_outputs and n in point.state_names)
        ]
        by_lag = [name for name in targets if name not in by_path]
        found = self._paths(point, cotangent, by_path, steps) if by_path else {}
        found |= self._lags(point, cotangent, by_lag, steps) if by_lag else {}
        return {name: name_paths(paths, self.chunk, steps) for name, paths in found.items()}

    def _paths(
        self, point: Point, cotangent: Cotangent, targets: list[str], steps: int
    ) -> dict[str, Paths]:
        """Paths of inputs and initial state: every pair of a source and a result step."""
        if any(v is not None for v in cotangent.outputs):
            losses = [(t, self._at_step(cotangent, t)) for t in range(steps)]
        else:
            losses = [(steps - 1, cotangent)]
        collected: dict[str, list[tuple[int, int, bool, bool]]] = {name: [] for name in targets}
        for t, loss in losses:
            gradient = gradients(self.function, point, loss, self.without)
            for name in targets:
                rows = self.truth.rows(point, loss, gradient, name)
                wrong, visible = rows.wrong_and_visible(self.truth.rtol, self.truth.eps)
                is_input = name in point.input_names
                for row in range(len(wrong)):
                    source = row if is_input else INITIAL
                    # A nonzero gradient at steps after the result is wrong too, and is counted at lag 0.
                    if source <= t or bool(wrong[row]):
                        entry = (min(source, t), t, bool(wrong[row]), bool(visible[row]))
                        collected[name].append(entry)
        return {name: _paths(entries, by_lag=False) for name, entries in collected.items()}

    def _lags(
        self, point: Point, cotangent: Cotangent, targets: list[str], steps: int
    ) -> dict[str, Paths]:
        """Paths of parameters by lag: the gradient of the last d + 1 steps less that of the last d.

        An initial state needs no subtraction: it lies d + 1 steps before the end itself.
        """
        windows = self._windows(point, steps)
        last = (
            self._at_step(cotangent, steps - 1)
            if any(v is not None for v in cotangent.outputs)
            else cotangent
        )
        before: dict[str, Rows] = {}
        collected: dict[str, list[tuple[int, int, bool, bool]]] = {name: [] for name in targets}
        for lag in range(steps):
            start = steps - 1 - lag
            window = windows[lag]
            loss = replace(
                last,
                outputs=tuple(
                    v if v is None else v.narrow(self.layout.time, start, lag + 1)
                    for v in last.outputs
                ),
            )
            gradient = gradients(self.function, window, loss, self.without)
            for name in targets:
                rows = self.truth.rows(window, loss, gradient, name)
                part = rows
                scale = torch.maximum(rows.found.norm(dim=1), rows.truth.norm(dim=1))
                if name in before and name not in point.state_names:
                    part = rows - before[name]
                    scale = scale + torch.maximum(
                        before[name].found.norm(dim=1), before[name].truth.norm(dim=1)
                    )
                before[name] = rows
                wrong, visible = part.wrong_and_visible(self.truth.rtol, self.truth.eps, scale)
                collected[name].append((0, lag, bool(wrong[0]), bool(visible[0])))
        return {name: _paths(entries, by_lag=True) for name, entries in collected.items()}

    def _at_step(self, cotangent: Cotangent, t: int) -> Cotangent:
        """The same weights on the outputs of one step only, and none on the final state."""
        outputs = tuple(
            v if v is None else _only(v, self.layout.time, t) for v in cotangent.outputs
        )
        return replace(cotangent, outputs=outputs, final=(None,) * len(cotangent.final))

    def _windows(self, point: Point, steps: int) -> list[Point]:
        """The last d + 1 steps for every lag d, from the states that single steps lead to."""
        if id(point) in self.windows:
            return self.windows[id(point)][1]
        states = [point.state]
        with torch.no_grad():
            for t in range(steps - 1):
                inputs = self.layout.steps(point.inputs, t, t + 1)
                _, final = self.function(inputs, tuple(s.clone() for s in states[-1]))
                states.append(tuple(s.detach().clone() for s in final))
        found = [
            replace(point, inputs=self.layout.steps(point.inputs, t, steps), state=states[t])
            for t in reversed(range(steps))
        ]
        self.windows[id(point)] = (point, found)
        return found


def _paths(entries: list[tuple[int, int, bool, bool]], by_lag: bool) -> Paths:
    source, result, wrong, visible = zip(*entries, strict=True)
    return Paths(
        np.array(source, np.int64),
        np.array(result, np.int64),
        np.array(wrong),
        np.array(visible),
        by_lag,
    )
