"""The recurrent weights of a model by layer, found without running it.

A frozen recurrence leaves no layer run, so it can only be found on the model itself. Only modules that are certainly
recurrent count: torch's own, registered cells, and step modules named by the user.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from torch import nn

from rnndiag.recorder.capture.modules import recurrent_modules

_FUSED = re.compile(r"(?:weight|bias)_[a-z]+_l(?P<layer>\d+)(?P<reverse>_reverse)?$")
"""Suffix of the parameters of a fused recurrent module: number of the layer and direction."""


def recurrent_weights(model: nn.Module, steps: Iterable[str | type] = ()) -> dict[str, list[str]]:
    """Layer -> qualified names of its parameters, under the names that its layer runs will have.

    Example:
        >>> recurrent_weights(nn.ModuleDict({"rnn": nn.LSTM(3, 4, num_layers=2, bias=False)}))
        {'rnn.l0': ['rnn.weight_ih_l0', 'rnn.weight_hh_l0'], 'rnn.l1': ['rnn.weight_ih_l1', 'rnn.weight_hh_l1']}
    """
    found: dict[str, list[str]] = {}
    for name, watched in recurrent_modules(model, steps).items():
        if not watched.sure:
            continue
        for key, parameter in watched.module.named_parameters():
            if not isinstance(parameter, nn.parameter.UninitializedParameter):
                layer = _layer(name, key) if isinstance(watched.module, nn.RNNBase) else name
                found.setdefault(layer, []).append(f"{name}.{key}" if name else key)
    return found


def _layer(module: str, key: str) -> str:
    """`rnn`, `weight_hh_l0_reverse` -> `rnn.l0.reverse`; for a parametrized weight the name is within a longer path."""
    for part in key.split("."):
        matched = _FUSED.match(part)
        if matched:
            direction = ".reverse" if matched["reverse"] else ""
            return f"{module}.l{matched['layer']}{direction}".lstrip(".")
    return module


def named_parameters(model: Any) -> dict[str, Any]:
    """All initialized parameters by qualified name; shared ones once, under their first name."""
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if not isinstance(parameter, nn.parameter.UninitializedParameter)
    }
