"""Layers above one another, each a recurrence of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from lightning_modules.recurrence.recurrence import Recurrence, State


class Chain(Recurrence):
    """The output of each layer is the input of the next.

    between: makes the module (dropout, say) through which the input of each layer and the last output pass;
    without `ends`, the input of the lowest layer and the last output do not.
    bypass: the input reaches every layer, and every layer reaches the output.
    """

    def __init__(
        self,
        make: Callable[[int], Recurrence],
        inputs: int,
        layers: int,
        between: Callable[[], nn.Module] | None = None,
        bypass: bool = False,
        ends: bool = True,
    ) -> None:
        super().__init__()
        built: list[Recurrence] = []
        for _ in range(layers):
            below = built[-1].features if built else 0
            built.append(make(below + (inputs if bypass or not built else 0)))
        self.layers: Sequence[Recurrence] = nn.ModuleList(built)  # type: ignore[assignment]
        passes = [between() for _ in range(layers + 1)] if between else []
        if passes and not ends:
            passes[0] = passes[-1] = nn.Identity()
        self.between = nn.ModuleList(passes)
        self.bypass = bypass
        self.features = sum(layer.features for layer in built) if bypass else built[-1].features
        self.parts = tuple(part for layer in built for part in layer.parts)
        self.batch_dim = built[0].batch_dim
        self.causal = all(layer.causal for layer in built)

    def forward(
        self, inputs: Tensor, state: State | None = None, lengths: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Layer by layer, each over the whole sequence."""
        befores = self._split(state)
        outputs: list[Tensor] = []
        afters: list[Tensor] = []
        for number, (layer, before) in enumerate(zip(self.layers, befores, strict=True)):
            below = outputs[-1:] + ([inputs] if self.bypass or not outputs else [])
            output, after = layer(self._pass(number, torch.cat(below, -1)), before, lengths)
            outputs.append(output)
            afters.extend(after)
        top = torch.cat(outputs, -1) if self.bypass else outputs[-1]
        return self._pass(len(self.layers), top), tuple(afters)

    def _pass(self, number: int, tensor: Tensor) -> Tensor:
        return self.between[number](tensor) if len(self.between) else tensor

    def _split(self, state: State | None) -> list[State | None]:
        if state is None:
            return [None] * len(self.layers)
        rest = iter(state)
        return [tuple(next(rest) for _ in layer.parts) for layer in self.layers]

    @property
    def state_size(self) -> int:
        """The sum over the layers."""
        return sum(layer.state_size for layer in self.layers)

    def state_from(self, vector: Tensor) -> State:
        """(B, state_size) -> the layers' states one after another."""
        pieces = vector.split([layer.state_size for layer in self.layers], -1)
        pairs = zip(self.layers, pieces, strict=True)
        return tuple(part for layer, piece in pairs for part in layer.state_from(piece))

    def layer_states(self, state: State) -> tuple[Tensor, ...]:
        """h of every layer."""
        pairs = zip(self.layers, self._split(state), strict=True)
        return tuple(h for layer, own in pairs if own is not None for h in layer.layer_states(own))

    def layer_names(self, prefix: str) -> tuple[str, ...]:
        """From the lowest layer up."""
        numbered = enumerate(self.layers)
        return tuple(
            name
            for number, layer in numbered
            for name in layer.layer_names(f"{prefix}.layers.{number}")
        )
