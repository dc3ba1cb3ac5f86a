"""Runs one program twice: torch's recurrent modules under `probe`, and loops unrolled by hand in their place."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import reference
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import rnndiag

CELLS = {nn.LSTMCell: "lstm", nn.GRUCell: "gru", nn.RNNCell: "elman_tanh"}


@dataclass
class ByHand:
    """Stands in for a recurrent module of torch: same call, unrolled step by step in float64."""

    module: nn.Module
    calls: list[dict[str, reference.Tape]] = field(default_factory=list)
    """By call: the tapes of its layers."""
    lengths: list[list[int] | None] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.weights = {
            key: value.detach().double().requires_grad_()
            for key, value in self.module.named_parameters()
        }

    def __getattr__(self, name: str) -> Any:
        weights = self.__dict__.get("weights", {})
        return weights[name] if name in weights else getattr(self.module, name)

    def __call__(self, x: Any, hx: Any = None, masks: Sequence[Tensor] = ()) -> Any:
        if isinstance(self.module, nn.RNNCellBase):
            return self._one_step(x, hx)
        lengths = None
        packed = isinstance(x, PackedSequence)
        if packed:
            like, (x, sizes) = x, pad_packed_sequence(x)
            lengths = sizes.tolist()
        elif self.module.batch_first and x.dim() == 3:
            x = x.transpose(0, 1)
        unbatched = x.dim() == 2
        x = x.unsqueeze(1) if unbatched else x
        initial = None if hx is None else (hx if isinstance(hx, tuple) else (hx,))
        if unbatched and initial is not None:
            initial = tuple(part.unsqueeze(1) for part in initial)
        y, final, tapes = reference.unroll_module(
            self.module, x, initial, lengths, masks, self.weights
        )
        self.calls.append(tapes)
        self.lengths.append(lengths)
        if packed:
            y = pack_padded_sequence(y, torch.tensor(lengths), enforce_sorted=False)
            assert torch.equal(y.batch_sizes, like.batch_sizes)
        elif unbatched:
            y, final = y.squeeze(1), tuple(part.squeeze(1) for part in final)
        elif self.module.batch_first:
            y = y.transpose(0, 1)
        return y, final if isinstance(self.module, nn.LSTM) else final[0]

    def _one_step(self, x: Tensor, state: Any) -> Any:
        cell = CELLS[type(self.module)]
        units = self.module.hidden_size
        if state is None:
            state = (x.new_zeros(len(x), units),) * (2 if cell == "lstm" else 1)
        state = state if isinstance(state, tuple) else (state,)
        _, new, tape = reference.unroll(cell, self.weights, x[None], state)
        self.calls.append({"": tape})
        self.lengths.append(None)
        return new if cell == "lstm" else new[0]


@dataclass
class Both:
    """A program as captured, and as done by hand."""

    probe: Any
    by_hand: Mapping[str, ByHand]

    def check(
        self, expected: Mapping[str, tuple[str, Sequence[int], str]], ties: Mapping[str, str]
    ) -> None:
        """expected: run name -> (module, its calls in the recurrence, layer); every run must be there, and be exact."""
        runs = self.probe.layer_runs
        assert [run.name for run in runs] == list(expected)
        for run in runs:
            module, calls, layer = expected[run.name]
            stand_in = self.by_hand[module]
            tapes = [stand_in.calls[call][layer] for call in calls]
            lengths = stand_in.lengths[calls[0]]
            assert run.tie == ties.get(run.name, "zero"), run.name
            same(run, tapes, lengths)
        for proof in self.probe.proofs:
            assert proof.verdict == "exact", proof.reasons
            assert proof.worst <= 1e-12


def same(
    run: rnndiag.LayerRun, tapes: Sequence[reference.Tape], lengths: list[int] | None = None
) -> None:
    """States, adjoints and contributions of a layer run are those of the tapes, one after another."""
    keep = 1.0 if lengths is None else reference.mask(lengths, run.T)[..., None]
    adj = rnndiag.adjoints(run)
    for found, expected in (
        (run.states, [tape.states() for tape in tapes]),
        (adj.parts, [tape.adjoints() for tape in tapes]),
    ):
        for part, by_call in zip(found, zip(*expected, strict=True), strict=True):
            assert reference.relative(part, torch.cat(by_call) * keep) < 1e-10, run.name
    for key in run.weights:
        found_g = rnndiag.contributions(run, key)
        expected_g = torch.cat([tape.contributions(key) for tape in tapes])
        assert reference.relative(found_g, expected_g) < 1e-10, (run.name, key)


def run_both(modules: Mapping[str, nn.Module], program: Callable[..., Tensor | None]) -> Both:
    """program(**modules) returns a loss, or calls backward itself and returns None."""
    model = nn.ModuleDict(modules)
    state = torch.get_rng_state()
    with rnndiag.probe(model) as probe:
        loss = program(**modules)
        if loss is not None:
            loss.backward()
    after = torch.get_rng_state()
    probe.layer_runs
    assert torch.equal(torch.get_rng_state(), after)
    torch.set_rng_state(state)
    by_hand = {name: ByHand(module) for name, module in modules.items()}
    loss = program(**by_hand)
    if loss is not None:
        loss.backward()
    return Both(probe, by_hand)
