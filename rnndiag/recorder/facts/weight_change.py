"""The change of the weights in one optimizer step relative to their size, |Δθ| / |θ|.

It is the strongest single sign of a wrong learning rate. It needs the weights before and after a step, so it is
measured at recorded steps only. Large models are subsampled: every k-th weight entry.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rnndiag.recorder.facts.gradient_norms import gradients_of, total_norm
from rnndiag.recorder.facts.history import number
from rnndiag.recorder.facts.recurrent_weights import named_parameters
from rnndiag.store.measurement import Measurement

MOST_ENTRIES = 2**22
"""Largest number of entries that are all used; of more, every k-th."""

OTHER = ""
"""Name of the group of all weights that are not recurrent."""


class WeightChange:
    """Holds copies of the weights across one optimizer step.

    Args:
        model: The model that is trained.
        layers: Layer -> qualified names of its recurrent parameters.
    """

    def __init__(self, model: Any, layers: Mapping[str, Sequence[str]]) -> None:
        self._model = model
        self._layers = {layer: tuple(names) for layer, names in layers.items()}
        self._groups = self._grouped()
        self._start = {name: _norm(weights) for name, weights in self._groups.items()}
        self._before: dict[str, list[Tensor]] = {}

    def name_layers(self, layers: Mapping[str, Sequence[str]]) -> None:
        """Set the parameters of layers from layer runs; custom cells can only be found by their runs."""
        named = {layer: tuple(names) for layer, names in layers.items() if names}
        taken = {name for names in named.values() for name in names}
        rest = {layer: names for layer, names in self._layers.items() if not taken & set(names)}
        if (merged := {**rest, **named}) != self._layers:
            self._layers = merged
            self._groups = self._grouped()
            self._start = {name: _norm(weights) for name, weights in self._groups.items()}

    def _grouped(self) -> dict[str, list[Tensor]]:
        """Layer -> its weights, flat; OTHER -> all weights that belong to no layer."""
        parameters = named_parameters(self._model)
        owner = {name: layer for layer, names in self._layers.items() for name in names}
        groups: dict[str, list[Tensor]] = {layer: [] for layer in self._layers}
        groups[OTHER] = []
        for name, parameter in parameters.items():
            groups[owner.get(name, OTHER)].append(parameter.detach())
        return {name: _sampled(weights) for name, weights in groups.items() if weights}

    @torch.no_grad()
    def before_step(self) -> None:
        """Copy the weights; further calls before `measurements` have no effect."""
        if not self._before:
            self._before = {
                name: [weight.clone() for weight in weights]
                for name, weights in self._groups.items()
            }

    @torch.no_grad()
    def measurements(self, optimizers: Sequence[Any]) -> list[Measurement]:
        """|Δθ| / |θ| per layer and of all other weights, and the norm of the gradients used."""
        before, self._before = self._before, {}
        found = [one for name in before for one in self._changes(name, before[name])]
        grads = [gradient for one in optimizers for gradient in gradients_of(one)]
        used = total_norm(grads) if before else None
        if used is not None and number(used) > 0:  # a manual loop may have zeroed them since
            found.append(Measurement.of("stepped_gradient_norm", np.asarray(number(used))))
        return found

    def _changes(self, name: str, before: list[Tensor]) -> Iterator[Measurement]:
        now, size = self._groups[name], _norm(before)
        if len(now) != len(before) or any(
            a.shape != b.shape for a, b in zip(now, before, strict=True)
        ):
            return
        change = _norm([weight - old for weight, old in zip(now, before, strict=True)])
        ratio = np.asarray(change / size if size > 0 else np.nan)
        if name == OTHER:
            yield Measurement.of("other_update_ratio", ratio)
            return
        norm = _norm(now)
        start = self._start.get(name, 0.0)
        yield Measurement.of("update_ratio", ratio, name)
        yield Measurement.of("weight_norm", np.asarray(norm), name)
        yield Measurement.of(
            "weight_growth", np.asarray(norm / start if start > 0 else np.nan), name
        )


def _sampled(weights: list[Tensor]) -> list[Tensor]:
    """Flat views of the weights, subsampled if there are too many entries."""
    stride = -(-sum(weight.numel() for weight in weights) // MOST_ENTRIES)
    return [weight.reshape(-1)[:: max(stride, 1)] for weight in weights]


def _norm(weights: Sequence[Tensor]) -> float:
    return number(total_norm(list(weights)))
