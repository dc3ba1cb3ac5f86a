"""torch's own layers: one fused call over the whole sequence, packed where lengths differ."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from lightning_modules.recurrence.recurrence import Recurrence, State


class Kernel(Recurrence):
    """nn.RNN, nn.LSTM or nn.GRU. State tensors are torch's: (layers * directions, B, H)."""

    batch_dim = 1

    def __init__(
        self,
        make: Callable[..., nn.RNNBase],
        parts: tuple[str, ...],
        inputs: int,
        hidden: int,
        layers: int = 1,
        dropout: float = 0.0,
        bidirectional: bool = False,
    ) -> None:
        super().__init__()
        self.rnn = make(
            inputs, hidden, num_layers=layers, dropout=dropout, bidirectional=bidirectional
        )
        self.parts = parts
        self.features = hidden * (2 if bidirectional else 1)
        self.causal = not bidirectional
        self._suffixes = ("", ".reverse") if bidirectional else ("",)
        self._blocks = layers * len(self._suffixes)

    def forward(
        self, inputs: Tensor, state: State | None = None, lengths: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """One call of the kernel."""
        before = state if state is None or len(state) > 1 else state[0]
        if lengths is None:
            outputs, after = self.rnn(inputs, before)
        else:
            packed = pack_padded_sequence(inputs, lengths.cpu(), enforce_sorted=False)
            outputs, after = self.rnn(packed, before)
            outputs, _ = pad_packed_sequence(outputs, total_length=inputs.shape[0])
        return outputs, after if isinstance(after, tuple) else (after,)

    @property
    def state_size(self) -> int:
        """Layers * directions * parts * H."""
        return self._blocks * len(self.parts) * self.rnn.hidden_size

    def state_from(self, vector: Tensor) -> State:
        """(B, state_size) -> torch's (layers * directions, B, H), one for each part."""
        blocks = vector.view(vector.shape[0], len(self.parts), self._blocks, -1)
        return tuple(part.transpose(0, 1).contiguous() for part in blocks.unbind(1))

    def layer_states(self, state: State) -> tuple[Tensor, ...]:
        """h of each layer (and direction)."""
        return state[0].unbind(0)

    def layer_names(self, prefix: str) -> tuple[str, ...]:
        """torch's order: layer by layer, both directions of each."""
        layers = range(self.rnn.num_layers)
        return tuple(f"{prefix}.rnn.l{number}{end}" for number in layers for end in self._suffixes)
