"""Quantities of memory_need against slow float64 computations of their own."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from need.shift_register import ShiftRegister, copy_batches, cross_entropy
from torch import Tensor, nn

import rnndiag
from rnndiag.recorder.need.chosen_layer import chosen_layer
from rnndiag.recorder.need.control import _perturbed
from rnndiag.recorder.need.entry import _autocorrelation
from rnndiag.recorder.need.features import LINEAR, Basis, Block, Rows, Whitening
from rnndiag.recorder.need.output_loss import OutputLoss, Sample
from rnndiag.recorder.need.skips import Part, SkipFitter, _clipped, _clips
from rnndiag.recorder.need.use import MemoryUse, burn_in
from rnndiag.stats.need.flips import family_wise_p, p_of_sum
from rnndiag.stats.need.gains import interval

STEPS = 7


class Reader(nn.Module):
    """A recurrent layer with a linear head, in float64."""

    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.rnn = kind(2, 5, batch_first=True).double()
        self.head = nn.Linear(5, 1).double()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.rnn(x)[0]).squeeze(-1)
        return out


def squared(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    loss: Tensor = (model(batch["x"]) - batch["y"]).square().mean()
    return loss


def real_batches(count: int, sequences: int = 6, steps: int = STEPS) -> list[dict[str, Tensor]]:
    draw = torch.Generator().manual_seed(8)
    shape = (sequences, steps)
    return [
        {
            "x": torch.randn(*shape, 2, generator=draw, dtype=torch.float64),
            "y": torch.randn(*shape, generator=draw, dtype=torch.float64),
        }
        for _ in range(count)
    ]


def recorded(model: nn.Module, batches: list[dict[str, Tensor]]) -> tuple[OutputLoss, list[Sample]]:
    layer, _ = chosen_layer(model, squared, batches[0], None)
    loss = OutputLoss(model, squared, layer, 0)
    return loss, [loss.sample(batch, number) for number, batch in enumerate(batches)]


def states_of(model: Reader, x: Tensor) -> list[list[Tensor]]:
    """(T + 1) states of every sequence, by single steps."""
    lstm = isinstance(model.rnn, nn.LSTM)
    zero = torch.zeros(1, len(x), 5, dtype=torch.float64)
    state = (zero, zero) if lstm else zero
    found = [state]
    for t in range(x.shape[1]):
        _, state = model.rnn(x[:, t : t + 1], state)
        found.append(state)
    return [[*one] if lstm else [one] for one in found]  # type: ignore[misc]


@pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM, nn.RNN])
@pytest.mark.parametrize("inputs", [1, 3, 6])
@torch.no_grad()
def test_use_is_the_rise_of_the_loss_over_windows_from_three_starts(
    kind: type[nn.RNNBase], inputs: int
) -> None:
    model, batches = Reader(kind).eval(), real_batches(2)
    loss, samples = recorded(model, batches)
    rise = MemoryUse(loss, samples, seed=0).rise(inputs)

    by_start = []
    for start in ("zero", "mean", "swap"):
        rises = []
        for batch in batches:
            x, y = batch["x"], batch["y"]
            states, total = states_of(model, x), 0.0
            for b, u in itertools.product(range(len(x)), range(STEPS)):
                first = u - inputs + 1
                state = None
                if first > 0:
                    parts = states[first]
                    other = (b + 1) % len(x)
                    chosen = {
                        "zero": [torch.zeros_like(p[:, :1]) for p in parts],
                        "mean": [p.mean(1, keepdim=True) for p in parts],
                        "swap": [p[:, other : other + 1] for p in parts],
                    }[start]
                    state = tuple(chosen) if len(chosen) == 2 else chosen[0]
                states_of_window, _ = model.rnn(x[b : b + 1, max(first, 0) : u + 1], state)
                out = model.head(states_of_window[0, -1])
                total += float((out.squeeze() - y[b, u]) ** 2)
            rises.append(total / y.numel() - float(squared(model, batch)))
        by_start.append(sum(rises) / len(rises))
    assert rise.mean == pytest.approx(min(by_start), rel=1e-6, abs=1e-8)


@torch.no_grad()
def test_burn_in_is_the_step_after_which_two_runs_have_met() -> None:
    model, batches = Reader(nn.GRU).eval(), real_batches(3, 8, 30)
    loss, samples = recorded(model, batches)
    last = []
    for batch in batches:
        x = batch["x"]
        ends = model.rnn(x)[1].roll(1, 1)
        own, other = model.rnn(x)[0], model.rnn(x, ends)[0]
        between = np.mean(
            [float((own[b, t] - own[b - 1, t]).norm()) for b in range(8) for t in range(30)]
        )
        for b in range(8):
            apart = [
                t + 1 for t in range(30) if float((own[b, t] - other[b, t]).norm()) > 0.01 * between
            ]
            last.append(max(apart, default=0))
    assert burn_in(loss, samples) == math.ceil(np.quantile(last, 0.95))


def test_p_of_random_signs_is_that_of_all_signs() -> None:
    values = np.random.default_rng(5).standard_normal(10) + 0.5
    sums = [np.dot(signs, values) for signs in itertools.product((-1, 1), repeat=10)]
    exact = np.mean([one >= values.sum() - 1e-12 for one in sums])
    assert p_of_sum(values, 20_000, 0) == pytest.approx(exact, abs=0.01)


def test_family_wise_p_is_that_of_the_largest_over_all_signs() -> None:
    rows = np.random.default_rng(6).standard_normal((3, 9))
    rows[1] += 0.8
    size = np.sqrt((rows**2).sum(1))
    largest = [
        max(rows @ np.asarray(signs) / size) for signs in itertools.product((-1, 1), repeat=9)
    ]
    exact = [np.mean(np.asarray(largest) >= one - 1e-12) for one in rows.sum(1) / size]
    assert family_wise_p(rows, 20_000, 0) == pytest.approx(exact, abs=0.012)


def test_interval_is_that_of_the_mean() -> None:
    values = np.random.default_rng(7).standard_normal(50)
    error = math.sqrt(sum((v - sum(values) / 50) ** 2 for v in values) / 49 / 50)
    mean = sum(values) / 50
    assert interval(values) == pytest.approx((mean, mean - 1.96 * error, mean + 1.96 * error))


@pytest.mark.parametrize("n", [6, 40])
def test_whitened_rows_have_unit_variance_and_the_leading_axes(n: int) -> None:
    rows = np.random.default_rng(n).standard_normal((n, 9)) * np.arange(1, 10)
    white = Whitening.of(torch.from_numpy(rows), 4)(torch.from_numpy(rows)).numpy()
    u, s, _ = np.linalg.svd(rows - rows.mean(0), full_matrices=False)
    expected = u[:, :4] * math.sqrt(n)
    signs = np.sign((white * expected).sum(0))
    assert np.allclose(white, expected * signs, atol=1e-8)
    assert np.all(np.diff(s) <= 0)


def test_autocorrelation_time_is_that_of_the_inputs() -> None:
    draw = torch.Generator().manual_seed(2)
    x = torch.randn(64, 200, 2, generator=draw)
    for t in range(1, 200):
        x[:, t] = 0.75 * x[:, t - 1] + math.sqrt(1 - 0.75**2) * x[:, t]
    batch = {"x": x.double(), "y": torch.zeros(64, 200, dtype=torch.float64)}
    _, samples = recorded(Reader(nn.RNN).eval(), [batch])
    assert _autocorrelation(samples) == pytest.approx(1 / (1 - 0.75), rel=0.1)


class Silent(nn.Module):
    """A relu net whose outputs are 0 for good; the head adds up what a skip would write to them."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.RNN(1, 4, nonlinearity="relu", batch_first=True)
        self.head = nn.Linear(4, 1, bias=False)
        with torch.no_grad():
            for weight in self.rnn.parameters():
                weight.zero_()
            self.head.weight.fill_(1.0)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.rnn(x)[0]).squeeze(-1)
        return out


def test_gain_of_a_linear_need_is_its_variance_also_where_no_unit_ever_fires() -> None:
    draw = torch.Generator().manual_seed(4)
    batches = []
    for _ in range(12):
        x = torch.randn(32, 16, generator=draw)
        past = torch.nn.functional.pad(x, (5, 0))[:, :16]
        y = 0.5 * past + torch.randn(32, 16, generator=draw)
        batches.append({"x": x[..., None], "y": y})
    need = rnndiag.memory_need(Silent(), batches, squared, beyond=3)
    assert need.lead == "needed_beyond"
    assert need.peak_lag == 5
    assert need.further.gain == pytest.approx(0.25 * 11 / 16, rel=0.1)  # zero before the first step
    assert need.gap <= 0.01


def test_planted_need_costs_what_was_asked_for() -> None:
    model, batches = ShiftRegister(3).eval(), copy_batches(6, 6)
    layer, _ = chosen_layer(model, cross_entropy, batches[0], None)
    loss = OutputLoss(model, cross_entropy, layer, 0)
    samples = [loss.sample(batch, number) for number, batch in enumerate(batches)]
    basis = Basis.of(samples[:3])
    parts = [Part(some, Rows(basis, some)) for some in (samples[:3], samples[3:4], samples[4:])]
    fitter = SkipFitter(loss, *parts, scale=1.0)
    perturbed = _perturbed(fitter, fitter.recorded(), Block(LINEAR, 4, 4), 0.03)
    assert perturbed is not None
    (sample,) = parts[1].samples
    logits = model.head(perturbed.by_part[1][0]).detach()
    after = nn.functional.cross_entropy(
        logits.flatten(0, 1).double(), sample.batch["y"].flatten(), ignore_index=-100
    )
    assert float(after) - sample.loss == pytest.approx(0.03, rel=0.06)


def test_errors_with_heavy_tails_are_also_fitted_clipped() -> None:
    light = torch.randn(4000, 3, generator=torch.Generator().manual_seed(0))
    heavy = light**5
    assert _clips(light) == [math.inf]
    unclipped, limit = _clips(heavy)
    assert math.isinf(unclipped)
    assert limit == pytest.approx(5 * float(heavy.norm(dim=1).median()))
    norms = _clipped(heavy, limit).norm(dim=1)
    assert float(norms.max()) <= limit * (1 + 1e-5)
    small = heavy.norm(dim=1) < limit
    assert torch.equal(_clipped(heavy, limit)[small], heavy[small])


def test_lower_layer_says_that_lags_are_at_least_so_long() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.low = nn.GRU(2, 4, batch_first=True)
            self.high = nn.GRU(4, 4, batch_first=True)
            self.head = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.head(self.high(self.low(x)[0])[0])
            return logits

    torch.manual_seed(0)
    model, batches = Two(), copy_batches(4, 2, 8, 24)
    need = rnndiag.memory_need(model, batches, cross_entropy, layer="low", beyond=3)
    assert need.layer == "low"
    assert "high run after low" in " ".join(need.notes)
    assert "'at least' so long" in str(need)
    last, later = chosen_layer(model, cross_entropy, batches[0], None)
    assert (last.name, later) == ("high", ())
