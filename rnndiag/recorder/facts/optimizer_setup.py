"""How training is configured to treat the recurrent weights, read once at the start of a fit.

A recurrence that is frozen, or in no optimizer, has no gradient to measure, so it can only be seen in these facts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rnndiag.recorder.facts.recurrent_weights import named_parameters
from rnndiag.recorder.facts.training_loop import TrainingLoop

_NUMBERS = ("lr", "weight_decay", "momentum")


def training_setup(loop: TrainingLoop, layers: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Optimizers, the recurrent weights of each layer, and the loader's batch size, as JSON.

    Args:
        loop: The training loop, its optimizers set up.
        layers: Layer -> qualified names of its parameters (`recurrent_weights`).

    Returns:
        {"optimizers": [{"kind", "lr", "weight_decay", "momentum"}], "recurrent": {layer: {"trainable", "frozen",
        "in_optimizer", "optimizer", "lr", "weight_decay"}}, "batch_size": int or None}. `trainable` and `in_optimizer`
        count parameters; `lr` is what the person configured, before a scheduler scaled it.
    """
    optimizers = loop.optimizers
    place = {
        id(parameter): (number, group)
        for number, optimizer in enumerate(optimizers)
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    parameters = named_parameters(loop.model)
    return {
        "optimizers": [_optimizer(optimizer) for optimizer in optimizers],
        "recurrent": {
            layer: _layer([parameters[name] for name in names if name in parameters], place)
            for layer, names in layers.items()
        },
        "batch_size": loop.batch_size,
    }


def _optimizer(optimizer: Any) -> dict[str, Any]:
    group = optimizer.param_groups[0]
    return {"kind": type(getattr(optimizer, "optimizer", optimizer)).__name__, **_numbers(group)}


def _numbers(group: Mapping[str, Any]) -> dict[str, float]:
    """Rate, decay and momentum of a parameter group; with a scheduler, the configured rate is `initial_lr`."""
    values = {**group, "lr": group.get("initial_lr", group.get("lr"))}
    return {
        name: float(values[name]) for name in _NUMBERS if isinstance(values.get(name), (int, float))
    }


def _layer(own: Sequence[Any], place: Mapping[int, tuple[int, Any]]) -> dict[str, Any]:
    held = [place[id(parameter)] for parameter in own if id(parameter) in place]
    facts: dict[str, Any] = {
        "trainable": sum(bool(parameter.requires_grad) for parameter in own),
        "frozen": sum(not parameter.requires_grad for parameter in own),
        "in_optimizer": len(held),
    }
    if held:
        facts |= {"optimizer": held[0][0], **_numbers(held[0][1])}
    return facts
