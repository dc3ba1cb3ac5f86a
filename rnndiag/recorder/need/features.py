"""Features for skip connections: functions of the present, and of the input some steps back.

All are centred and whitened on the sequences that the skips are fitted to. A row is one active output: sequence b, step
u.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rnndiag.errors import NotSupported
from rnndiag.recorder.need.output_loss import Sample

LINEAR, BILINEAR, SQUARE, BAG = KINDS = ("lin", "bil", "sq", "bag")
"""lin: x_{u-d}. bil: its products with the present input and state. sq: its products with itself. bag: lin and sq
summed over the lags of a group."""

INPUTS, INPUTS_IN_PRODUCTS, INPUTS_SQUARED = 16, 8, 6
"""Number of principal components of the input that lin, bil and sq use."""
MULTIPLIERS = 4
"""Number of principal components of the present input, and of the state, that bil multiplies with."""
STATES, RELUS = 48, 48
"""Number of principal components of the state, and of random relus, among the features of the present."""
SMALLEST = 1e-6
"""Principal components with less than this share of the largest variance are dropped."""


@dataclass(frozen=True)
class Whitening:
    """Projection on leading principal components, each scaled to variance 1."""

    mean: Tensor
    axes: Tensor
    """(size, components)"""

    @staticmethod
    def of(rows: Tensor, most: int) -> Whitening:
        """Fit to rows (n, size), keeping at most `most` components."""
        rows = rows.double()
        mean = rows.mean(0)
        centred = rows - mean
        n, size = centred.shape
        few = n < size  # then the Gram matrix of the rows has the same variances and is smaller
        moment = centred @ centred.T if few else centred.T @ centred
        variance, axes = torch.linalg.eigh(moment / max(n, 1))
        kept = variance > variance.max().clamp(min=1e-300) * SMALLEST
        variance, axes = variance[kept].flip(0)[:most], axes[:, kept].flip(1)[:, :most]
        if few:
            axes = centred.T @ axes / (n * variance).sqrt()
        return Whitening(mean, axes / variance.sqrt())

    def __call__(self, values: Tensor) -> Tensor:
        """Whitened coordinates (..., components) of values (..., size)."""
        centred: Tensor = values.double() - self.mean
        return centred @ self.axes

    def first(self, count: int) -> Whitening:
        """A copy with the first `count` components."""
        return Whitening(self.mean, self.axes[:, :count])


@dataclass(frozen=True)
class Basis:
    """The whitenings of inputs and states, fitted to the sequences that skips are fitted to."""

    inputs: Whitening
    present_input: Whitening
    present_state: Whitening
    states: Whitening
    relu_weights: Tensor
    relu_biases: Tensor

    @staticmethod
    def of(samples: Sequence[Sample]) -> Basis:
        """Centre and whiten on the given sequences."""
        inputs, states = [], []
        for sample in samples:
            chosen = sample.sequences.to(sample.active.device)
            inputs.append(sample.seen.inputs[chosen][sample.seen.valid[chosen]])
            states.append(sample.seen.states[sample.active])
        x, s = torch.cat(inputs), torch.cat(states)
        by_input = Whitening.of(x, INPUTS)
        by_state = Whitening.of(s, max(2, min(STATES, len(s) // 20)))
        present_input = by_input.first(MULTIPLIERS)
        present_state = by_state.first(MULTIPLIERS)
        n_input, n_state = present_input.axes.shape[1], present_state.axes.shape[1]
        if not n_input:
            raise NotSupported(
                "The inputs of the layer are the same at every step, so that no past input tells anything.",
                "Name a layer whose inputs differ with layer=, or give other batches.",
            )
        generator = torch.Generator().manual_seed(0)
        size = n_input + n_state
        weights = torch.randn(size, RELUS, generator=generator, dtype=torch.float64)
        weights *= 1.5 / math.sqrt(size)
        weights[n_input:, ::2] = 0  # every second relu uses the input only, at the same scale
        weights[:n_input, ::2] *= math.sqrt(size / n_input)
        biases = torch.randn(RELUS, generator=generator, dtype=torch.float64)
        device = x.device
        return Basis(
            by_input, present_input, present_state, by_state, weights.to(device), biases.to(device)
        )


@dataclass(frozen=True)
class Block:
    """One block of columns: one kind of feature at the lags low..high (a single lag unless it is a bag)."""

    kind: str
    low: int
    high: int


class Rows:
    """Features of the active outputs of some samples.

    Args:
        basis: The coordinates.
        samples: The samples; their active outputs are the rows, by sample, sequence, step.
    """

    def __init__(self, basis: Basis, samples: Sequence[Sample]) -> None:
        sequences, steps, owners = [], [], []
        longest = max(sample.seen.inputs.shape[1] for sample in samples)
        inputs, present, count, units = [], [], 0, 0
        for sample in samples:
            b, u = sample.active.nonzero(as_tuple=True)
            unit = torch.full((sample.batch_size,), -1, device=b.device)
            unit[sample.sequences] = torch.arange(len(sample.sequences), device=b.device)
            sequences.append(b + count)
            owners.append(unit[b] + units)
            steps.append(u)
            x = basis.inputs(sample.seen.inputs)
            inputs.append(torch.nn.functional.pad(x, (0, 0, 0, longest - x.shape[1])))
            present.append(sample.seen.states[sample.active])
            count += sample.batch_size
            units += len(sample.sequences)
        self.sequence, self.step = torch.cat(sequences), torch.cat(steps)
        self.owner, self.n_sequences = torch.cat(owners), units
        self.sizes = [len(b) for b in sequences]
        """Number of rows of each sample."""
        self._x = torch.cat(inputs)  # (all sequences, T, components)
        squared = self._x[..., :INPUTS_SQUARED]
        self._pairs = torch.triu_indices(
            squared.shape[-1], squared.shape[-1], device=self._x.device
        )
        states = torch.cat(present)
        now = self._x[self.sequence, self.step]
        self.multipliers = torch.cat(
            [now[:, : basis.present_input.axes.shape[1]], basis.present_state(states)], 1
        )
        self._basis, self._now, self._states = basis, now, states
        self._donor: Tensor | None = None

    def __len__(self) -> int:
        return len(self.step)

    def present(self, rows: Tensor | slice = slice(None)) -> Tensor:
        """Features without memory: 1, state, input, random relus of both and their products. (rows, columns)"""
        basis, q = self._basis, self.multipliers[rows]
        first, second = torch.triu_indices(q.shape[1], q.shape[1], device=q.device)
        return torch.cat(
            [
                torch.ones_like(q[:, :1]),
                basis.states(self._states[rows]),
                self._now[rows],
                (q @ basis.relu_weights + basis.relu_biases).relu(),
                q[:, first] * q[:, second],
            ],
            1,
        )

    def lagged(
        self, block: Block, rows: Tensor | slice = slice(None), donor: bool = False
    ) -> Tensor:
        """Features of the input `block.low` .. `block.high` steps back; zero before the first step. (rows, columns)

        Args:
            block: Kind and lags.
            rows: Which rows.
            donor: Take the past from another sequence whose present is much the same (see `donors`).
        """
        place = self.donors()[rows] if donor else rows
        b, u = self.sequence[place], self.step[place]
        if block.kind == BAG:
            linear, squares = (self._summed(b, u, block, kind) for kind in (LINEAR, SQUARE))
            return torch.cat([linear, squares], 1) / math.sqrt(block.high - block.low + 1)
        x = self._at(b, u - block.low, block.kind)
        if block.kind == BILINEAR:
            return (x.unsqueeze(2) * self.multipliers[rows].unsqueeze(1)).flatten(1)
        return x

    def _at(self, b: Tensor, u: Tensor, kind: str) -> Tensor:
        x = self._x[b, u.clamp(min=0)]
        valid: Tensor = (u >= 0).unsqueeze(1)
        return self._of_kind(x, kind) * valid

    def _of_kind(self, x: Tensor, kind: str) -> Tensor:
        if kind == LINEAR:
            return x
        if kind == BILINEAR:
            return x[..., :INPUTS_IN_PRODUCTS]
        first, second = self._pairs
        mean: Tensor = (first == second).double()  # the components have mean 0, variance 1
        return x[..., first] * x[..., second] - mean

    def _summed(self, b: Tensor, u: Tensor, block: Block, kind: str) -> Tensor:
        cumulative = self._cumulative(kind)
        low, high = (u - block.high).clamp(min=0), (u - block.low + 1).clamp(min=0)
        return cumulative[b, high] - cumulative[b, low]

    def _cumulative(self, kind: str) -> Tensor:
        """Sums over the steps before each step, (sequences, T + 1, components)."""
        x = self._x[..., :INPUTS_IN_PRODUCTS] if kind == LINEAR else self._of_kind(self._x, SQUARE)
        return torch.nn.functional.pad(x.cumsum(1), (0, 0, 1, 0))

    def donors(self) -> Tensor:
        """For every row the index of a row of another sequence with a similar present: input, state and step.

        Exchanging the past between such rows preserves the step and what the present reveals of the past. It is the
        control of the skips. The donor is drawn from the three nearest of at most `CANDIDATES` rows.
        """
        if self._donor is None:
            self._donor = self._nearest_rows()
        return self._donor

    def _nearest_rows(self) -> Tensor:
        n_input = min(MULTIPLIERS, self._basis.present_input.axes.shape[1])
        weight = torch.ones(self.multipliers.shape[1], dtype=torch.float64, device=self._x.device)
        weight[n_input:] = 0.5
        place = torch.cat([self.multipliers * weight, self.step.double().unsqueeze(1) / 20.0], 1)
        generator = torch.Generator().manual_seed(1)
        order = torch.randperm(len(self), generator=generator)[:CANDIDATES].to(place.device)
        donors = torch.empty(len(self), dtype=torch.long, device=place.device)
        near = min(3, len(order))
        for rows in torch.arange(len(self), device=place.device).split(1024):
            distance = torch.cdist(place[rows], place[order])
            same = self.owner[rows].unsqueeze(1) == self.owner[order].unsqueeze(0)
            distance[same] = torch.inf
            nearest = distance.topk(near, largest=False).indices
            drawn = torch.randint(near, (len(rows), 1), generator=generator).to(place.device)
            donors[rows] = order[nearest.gather(1, drawn).squeeze(1)]
        return donors


CANDIDATES = 4096
"""Number of rows among which a donor is searched: the search costs rows times candidates."""
