"""A step module as a cell of the engine: the registered cell it is bound to, or the module itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize

from rnndiag.engine.cells import Cell, State, binding_of, module_cell
from rnndiag.recorder.capture.hook import replaying
from rnndiag.recorder.capture.step_signature import (
    Arguments,
    Returned,
    Shape,
    flat,
    read_returned,
)


@dataclass(frozen=True)
class StepCell:
    """A cell, and the module's parameters under the cell's weight keys."""

    cell: Cell
    parameters: Mapping[str, Tensor]


def bound_cell(module: nn.Module, returned: Returned) -> StepCell | None:
    """The registered cell that the module computes; None if there is none or its weights are recomputed in each
    call."""
    binding = binding_of(module)
    if (
        binding is None
        or returned.output is not None
        or any(map(_is_parametrized, module.modules()))
    ):
        return None
    keys = {name: key for key, name in binding.weights.items()}
    own = dict(module.named_parameters())
    return StepCell(binding.cell, {keys.get(name, name): value for name, value in own.items()})


def cell_as_it_is(
    module: nn.Module, asked: Arguments, shape: Shape, returned: Returned, owner: str
) -> StepCell:
    """The module itself as a cell. A separate output becomes one more state part, which later steps ignore."""
    count = len(shape.sizes)
    names = ("h",) if count == 1 else tuple(f"h{k}" for k in range(count))
    parts = names + (() if returned.output is None else ("output",))

    def call(forward: Callable[..., Any], inputs: Tensor, state: State) -> State:
        args, kwargs = asked.replaced(inputs, shape.build(state[:count]))
        with replaying(), unchanged_attributes(module):
            found = read_returned(forward(*args, **kwargs), shape, owner)
        tensors = found.tensors
        if len(tensors) < len(
            parts
        ):  # the output is one of the state's tensors when run on its own
            tensors = (*tensors, tensors[0])
        return tuple(flat(part) for part in tensors)

    cell = module_cell(module, parts, call, name=type(module).__name__)
    return StepCell(cell, dict(module.named_parameters()))


def _is_parametrized(module: nn.Module) -> bool:
    return bool(parametrize.is_parametrized(module))


_TORCH_OWN = {"_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"}


@contextmanager
def unchanged_attributes(module: nn.Module) -> Iterator[None]:
    """Restore Python attributes that a step writes (a counter, a list of results): a replay must leave no trace."""
    saved = [
        (part, {key: value for key, value in vars(part).items() if key not in _TORCH_OWN})
        for part in module.modules()
    ]
    contents = [
        (value, value.copy())
        for _, attributes in saved
        for key, value in attributes.items()
        if type(value) in (list, dict, set) and not key.startswith("_")
    ]
    try:
        yield
    finally:
        for part, attributes in saved:
            own = vars(part)
            for key in [k for k in own if k not in attributes and k not in _TORCH_OWN]:
                del own[key]
            own.update(attributes)
        for value, before in contents:
            _refill(value, before)


def _refill(value: Any, before: Any) -> None:
    value.clear()
    if isinstance(value, list):
        value.extend(before)
    else:
        value.update(before)
