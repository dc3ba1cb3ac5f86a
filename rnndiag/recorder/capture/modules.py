"""Selects the modules of a model to watch: torch's recurrent ones, and step modules of a recurrence."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import nn

from rnndiag.engine.cells import binding_of
from rnndiag.errors import BadArgument
from rnndiag.recorder.capture.step_signature import may_be_step

_CELL_WEIGHTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


@dataclass(frozen=True)
class Watched:
    """One module to watch."""

    module: nn.Module
    is_step: bool
    """Whether it is a step module in Python; else it calls a recurrent kernel of torch."""
    sure: bool = True
    """False: recognised as a step module only by the name of its second argument."""

    def is_weight(self, key: str) -> bool:
        """Whether recurrent calls use this parameter directly; False for the inner ones of a parametrization."""
        if self.is_step:
            return self.sure
        own = self.module
        names = own._flat_weights_names if isinstance(own, nn.RNNBase) else _CELL_WEIGHTS
        return key in names


def recurrent_modules(model: nn.Module, steps: Iterable[str | type] = ()) -> dict[str, Watched]:
    """Qualified name -> the module to watch.

    steps: names or classes of further step modules, whatever their arguments are called. Modules inside of a step
    module that is named, or bound to a registered cell, belong to that step.
    """
    named = dict(model.named_modules())
    chosen = _chosen(named, (steps,) if isinstance(steps, (str, type)) else tuple(steps))
    found: dict[str, Watched] = {}
    inside: set[int] = set()
    for name, module in named.items():
        if id(module) in inside:
            continue
        if name in chosen or binding_of(module) is not None:
            found[name] = Watched(module, is_step=True)
            inside.update(map(id, module.modules()))
        elif isinstance(module, (nn.RNNBase, nn.RNNCellBase)):
            found[name] = Watched(module, is_step=False)
    taken = [part for watched in found.values() for part in watched.module.modules()]
    recurrent = set(map(id, taken))
    for name, module in reversed(named.items()):
        parts = {id(part) for part in module.modules()}
        if not parts & recurrent and may_be_step(module):
            found[name] = Watched(module, is_step=True, sure=False)
            recurrent |= parts
    return {name: found[name] for name in named if name in found}


def _chosen(named: Mapping[str, nn.Module], steps: tuple[str | type, ...]) -> set[str]:
    found: set[str] = set()
    for step in steps:
        if not isinstance(step, (str, type)):
            raise BadArgument(
                f"{step!r} was named as a step of a recurrence.",
                "Give the names or the classes of the modules that do one step.",
            )
        if isinstance(step, str):
            matches = {step} & named.keys()
        else:
            matches = {name for name, module in named.items() if isinstance(module, step)}
        if not matches:
            raise BadArgument(
                f"The model has no module {step!r}, which was named as a step of a recurrence.",
                f"Its modules are: {', '.join(filter(None, named)) or 'none'}.",
            )
        found |= matches
    return found
