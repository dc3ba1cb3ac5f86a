"""Parses calls of torch's recurrent kernels, over a sequence or one step, into one form."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rnndiag.engine.cells import CELLS, Cell, State

_PADDED = (
    "input",
    "hx",
    "params",
    "has_biases",
    "num_layers",
    "dropout",
    "train",
    "bidirectional",
    "batch_first",
)
_PACKED = ("data", "batch_sizes", *_PADDED[1:-1])
_STEP = ("input", "hx", "w_ih", "w_hh", "b_ih", "b_hh")


@dataclass(frozen=True)
class Plan:
    """The options of a call: all that is not a tensor of the graph."""

    cell: Cell
    kernel: Callable[..., Any]
    layers: int = 1
    directions: int = 1
    batch_first: bool = False
    batch_sizes: Tensor | None = None
    """(T,) of a packed batch; None: padded."""
    unsorted: Tensor | None = None
    """Packed position of every sequence of the user's batch; None: same order."""
    dropout: float = 0.0
    """Dropout probability between layers; 0 if the call did not apply dropout."""
    train: bool = False
    has_biases: bool = True
    one_step: bool = False
    """Whether the kernel does one step and has no time axis."""

    @property
    def packed(self) -> bool:
        """Whether the call was over a PackedSequence."""
        return self.batch_sizes is not None


@dataclass(frozen=True)
class KernelCall:
    """The arguments of one kernel call."""

    plan: Plan
    inputs: Tensor
    hx: State
    """One tensor per state part: (layers * directions, B, S_p), or (B, S_p) for one step."""
    weights: tuple[Mapping[str, Tensor], ...]
    """Per layer and direction: weight key -> tensor, as passed to the kernel."""

    def replaced(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any], inputs: Tensor, hx: State
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The kernel's arguments with other inputs and initial states."""
        plan = self.plan
        state: Any = hx if len(plan.cell.parts) > 1 else hx[0]
        names = _STEP if plan.one_step else _PACKED if plan.packed else _PADDED
        new = {names[0]: inputs, "hx": state}
        given = tuple(new.get(name, value) for name, value in zip(names, args, strict=False))
        return given + args[len(given) :], {k: new.get(k, value) for k, value in kwargs.items()}


def run_sequence(plan: Plan, inputs: Tensor, hx: Any, flat: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Run a sequence kernel with the plan's options: (y, h_n[, c_n])."""
    options = (plan.has_biases, plan.layers, plan.dropout, plan.train, plan.directions == 2)
    if plan.batch_sizes is not None:
        return tuple(plan.kernel(inputs, plan.batch_sizes, hx, list(flat), *options))
    return tuple(plan.kernel(inputs, hx, list(flat), *options, plan.batch_first))


def kernel_table() -> dict[Any, tuple[Cell, bool]]:
    """torch's kernel -> (its cell, whether it does one step), as declared by the cells."""
    table = {}
    for cell in CELLS.values():
        for names, one_step in ((cell.kernels, False), (cell.step_kernels, True)):
            for name in names:
                table[getattr(torch._VF, name)] = (cell, one_step)
    return table


def read_call(
    cell: Cell, one_step: bool, kernel: Any, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> KernelCall:
    """Parse the arguments of a kernel in any of its signatures."""
    if one_step:
        given = {**dict(zip(_STEP, args, strict=False)), **kwargs}
        weights = {
            key: given[name]
            for key, name in (
                ("weight_ih", "w_ih"),
                ("weight_hh", "w_hh"),
                ("bias_ih", "b_ih"),
                ("bias_hh", "b_hh"),
            )
            if given.get(name) is not None
        }
        plan = Plan(cell, kernel, one_step=True, has_biases="bias_ih" in weights)
        return KernelCall(plan, given["input"], _parts(given["hx"]), (weights,))
    packed = "batch_sizes" in kwargs or (len(args) > 3 and not isinstance(args[3], (bool, int)))
    given = {**dict(zip(_PACKED if packed else _PADDED, args, strict=False)), **kwargs}
    layers, directions = int(given["num_layers"]), 2 if given["bidirectional"] else 1
    train = bool(given["train"])
    plan = Plan(
        cell,
        kernel,
        layers=layers,
        directions=directions,
        batch_first=bool(given.get("batch_first", False)),
        batch_sizes=given.get("batch_sizes"),
        dropout=float(given["dropout"]) if train and layers > 1 else 0.0,
        train=train,
        has_biases=bool(given["has_biases"]),
    )
    weights_by_layer = _split(tuple(given["params"]), layers * directions, plan.has_biases)
    return KernelCall(
        plan, given["data" if packed else "input"], _parts(given["hx"]), weights_by_layer
    )


def _parts(hx: Any) -> State:
    return (hx,) if isinstance(hx, Tensor) else tuple(hx)


def _split(
    flat: tuple[Tensor, ...], groups: int, has_biases: bool
) -> tuple[dict[str, Tensor], ...]:
    keys = ["weight_ih", "weight_hh", *(["bias_ih", "bias_hh"] if has_biases else [])]
    size = len(flat) // groups
    if size > len(keys):
        keys.append("weight_hr")
    return tuple(
        dict(zip(keys, flat[k * size : (k + 1) * size], strict=True)) for k in range(groups)
    )
