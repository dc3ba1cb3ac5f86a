"""Every layout of torch's recurrent layers against the unrolled float64 loop: adjoints, contributions, proofs."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import pytest
import reference
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import rnndiag

STEPS, BATCH, INPUTS, UNITS, PROJECTION = 4, 3, 3, 4, 2
LENGTHS = [2, 4, 3]
CLASSES: dict[str, tuple[type[nn.RNNBase], dict[str, Any]]] = {
    "lstm": (nn.LSTM, {}),
    "lstm_proj": (nn.LSTM, {"proj_size": PROJECTION}),
    "gru": (nn.GRU, {}),
    "rnn_tanh": (nn.RNN, {"nonlinearity": "tanh"}),
    "rnn_relu": (nn.RNN, {"nonlinearity": "relu"}),
}


@dataclass(frozen=True)
class Case:
    """One point of the grid."""

    cell: str
    layers: int
    both: bool
    batch_first: bool
    packed: bool
    hx: bool
    dropout: float

    def module(self, dtype: torch.dtype = torch.float64) -> nn.RNNBase:
        kind, options = CLASSES[self.cell]
        return kind(
            INPUTS,
            UNITS,
            self.layers,
            bidirectional=self.both,
            batch_first=self.batch_first,
            dropout=self.dropout,
            dtype=dtype,
            **options,
        )

    def initial(self, module: nn.RNNBase, dtype: torch.dtype) -> tuple[Tensor, ...]:
        sizes = [module.proj_size or UNITS] + [UNITS] * isinstance(module, nn.LSTM)
        rows = self.layers * (1 + self.both)
        make = torch.randn if self.hx else torch.zeros
        return tuple(make(rows, BATCH, size, dtype=dtype) for size in sizes)

    def draw_masks(self, module: nn.RNNBase, dtype: torch.dtype) -> list[Tensor]:
        """The masks that the next call will draw, time-major and padded."""
        width = (module.proj_size or UNITS) * (1 + self.both)
        shape = (sum(LENGTHS), width) if self.packed else (STEPS, BATCH, width)
        masks = [
            torch.dropout(torch.ones(*shape, dtype=dtype), self.dropout, train=True)
            for _ in range(self.layers - 1)
        ]
        if not self.packed:
            return masks
        like = pack(torch.zeros(STEPS, BATCH, 1, dtype=dtype), batch_first=False)
        return [pad_packed_sequence(like._replace(data=mask))[0] for mask in masks]


def pack(x: Tensor, batch_first: bool) -> PackedSequence:
    return pack_padded_sequence(
        x, torch.tensor(LENGTHS), batch_first=batch_first, enforce_sorted=False
    )


@dataclass
class Seen:
    """A case as it was captured, and as the reference has it."""

    probe: Any
    tapes: dict[str, reference.Tape]
    lengths: list[int] | None
    found: tuple[Tensor, ...]
    expected: tuple[Tensor, ...]


def losses(outputs: Tensor, finals: tuple[Tensor, ...], weights: list[Tensor]) -> Tensor:
    total = (outputs * weights[0]).sum() + outputs.square().sum()
    return total + sum((f * w).sum() for f, w in zip(finals, weights[1:], strict=True))


def capture(case: Case, dtype: torch.dtype = torch.float64) -> Seen:
    torch.manual_seed(0)
    module = case.module(dtype)
    x = torch.randn(STEPS, BATCH, INPUTS, dtype=dtype, requires_grad=True)
    initial = case.initial(module, dtype)
    lengths = LENGTHS if case.packed else None
    width = (module.proj_size or UNITS) * (1 + case.both)
    weights = [
        torch.randn(STEPS, BATCH, width, dtype=dtype),
        *(torch.randn_like(p) for p in initial),
    ]
    torch.manual_seed(1)
    masks = case.draw_masks(module, dtype) if case.dropout else []

    torch.manual_seed(1)
    given = [part.clone().requires_grad_() for part in initial]
    hx = (tuple(given) if isinstance(module, nn.LSTM) else given[0],) if case.hx else ()
    laid_out = x.transpose(0, 1) if case.batch_first else x
    with rnndiag.probe(module) as probe:
        out, final = module(pack(laid_out, case.batch_first) if case.packed else laid_out, *hx)
        if case.packed:
            out = pad_packed_sequence(out)[0]
        elif case.batch_first:
            out = out.transpose(0, 1)
        final = final if isinstance(final, tuple) else (final,)
        losses(out, final, weights).backward()

    by_hand = {k: v.detach().double().requires_grad_() for k, v in module.named_parameters()}
    ref_out, ref_final, tapes = reference.unroll_module(
        module,
        x.detach().double(),
        tuple(part.double() for part in initial),
        lengths,
        [mask.double() for mask in masks],
        by_hand,
    )
    losses(ref_out, ref_final, [w.double() for w in weights]).backward()
    return Seen(probe, tapes, lengths, (out, *final), (ref_out, *ref_final))


CELLS = list(CLASSES)
SHAPES = [
    (layers, both, batch_first, packed, hx, dropout)
    for layers, both, batch_first, packed, hx, dropout in itertools.product(
        (1, 2, 3), (False, True), (False, True), (False, True), (False, True), (0.0, 0.5)
    )
    if layers > 1 or dropout == 0.0  # torch has no dropout below a single layer
]


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("both", [False, True], ids=["one", "both"])
def test_adjoints_and_contributions_are_those_of_the_unrolled_loop(
    cell: str, layers: int, both: bool
) -> None:
    for shape in SHAPES:
        if shape[:2] == (layers, both):
            check(Case(cell, *shape))


def check(case: Case) -> None:
    seen = capture(case)
    for found, expected in zip(seen.found, seen.expected, strict=True):
        assert reference.relative(found.detach(), expected.detach()) < 1e-12, case
    runs = seen.probe.layer_runs
    assert [run.name for run in runs] == list(seen.tapes), case
    (proof,) = seen.probe.proofs
    assert proof.verdict == "exact", (case, proof.reasons)
    assert proof.worst <= 1e-12, case
    expected_keys = {name for name, _ in case.module().named_parameters()}
    assert set(proof.residual) == expected_keys, case
    for run in runs:
        tape = seen.tapes[run.name]
        keep = 1.0 if seen.lengths is None else reference.mask(seen.lengths, STEPS)[..., None]
        assert run.tie == ("given" if case.hx else "zero"), case
        adj = rnndiag.adjoints(run)
        for found, expected in zip(run.states, tape.states(), strict=True):
            assert reference.relative(found, expected * keep) < 1e-12, (case, run.name)
        for found, expected in zip(adj.parts, tape.adjoints(), strict=True):
            assert reference.relative(found, expected * keep) < 1e-10, (case, run.name)
        for key in run.weights:
            found, expected = rnndiag.contributions(run, key), tape.contributions(key)
            assert reference.relative(found, expected) < 1e-10, (case, run.name, key)


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
def test_float32_is_exact_within_its_precision(cell: str, packed: bool) -> None:
    for both in (False, True):
        seen = capture(Case(cell, 2, both, False, packed, True, 0.5), torch.float32)
        (proof,) = seen.probe.proofs
        assert proof.verdict == "exact", proof.reasons
        assert proof.worst <= 1e-5
