"""What every recurrence can do, whatever it is made of."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

State = tuple[Tensor, ...]
"""All state tensors of a recurrence in a flat tuple; `Recurrence.parts` says what each one is."""


class Recurrence(nn.Module, ABC):
    """Inputs (T, B, I) and a state to outputs (T, B, F) and the state after each sequence's last step."""

    features: int
    """F, the size of the outputs."""
    parts: tuple[str, ...]
    """What each tensor of the state is: "h" is what the recurrent matrices see, "c" the cell of an LSTM."""
    batch_dim: int = 0
    """Which dimension of a state tensor counts the sequences."""
    causal: bool = True
    """Whether an output depends on the past alone, so that the sequence can be run piece by piece."""
    is_readout: bool = False
    """Whether the outputs are the model's predictions already."""

    @abstractmethod
    def forward(
        self, inputs: Tensor, state: State | None = None, lengths: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Run the whole sequence. Outputs beyond a sequence's length mean nothing."""

    @property
    @abstractmethod
    def state_size(self) -> int:
        """How many numbers the state of one sequence holds."""

    @abstractmethod
    def state_from(self, vector: Tensor) -> State:
        """(B, state_size) -> a state."""

    @abstractmethod
    def layer_states(self, state: State) -> tuple[Tensor, ...]:
        """h of every layer, each (B, H), from the lowest layer up."""

    @abstractmethod
    def layer_names(self, prefix: str) -> tuple[str, ...]:
        """How a recording calls the layers of `layer_states`; `prefix` is this module's own qualified name."""

    def initial(self, like: Tensor, batch: int) -> State:
        """The state of zeros, on the device of `like`."""
        dtype = like.dtype if like.is_floating_point() else torch.get_default_dtype()
        return self.state_from(torch.zeros(batch, self.state_size, dtype=dtype, device=like.device))


def at_lengths(sequence: Tensor, lengths: Tensor | None) -> Tensor:
    """(T, B, S) -> (B, S): each sequence at its own last step."""
    if lengths is None:
        return sequence[-1]
    last = lengths.to(sequence.device) - 1
    return sequence[last, torch.arange(sequence.shape[1], device=sequence.device)]


def reversed_within(sequence: Tensor, lengths: Tensor | None) -> Tensor:
    """(T, B, S) with every sequence turned round within its own length; padding stays at the end."""
    if lengths is None:
        return sequence.flip(0)
    time = torch.arange(sequence.shape[0], device=sequence.device)[:, None]
    lengths = lengths.to(sequence.device)[None]
    index = torch.where(time < lengths, lengths - 1 - time, time)
    return sequence.gather(0, index[..., None].expand_as(sequence))
