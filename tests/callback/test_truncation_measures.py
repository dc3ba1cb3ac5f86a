"""What the callback stores of truncation: every kind of estimator with its errors, and stacks cut as a whole."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import rnndiag
from rnndiag.engine.layer_run import LayerRun
from rnndiag.engine.truncation.estimators import ESTIMATORS
from rnndiag.engine.truncation.estimators.estimator import RecordedStep
from rnndiag.recorder.measures import Extent
from rnndiag.recorder.measures import estimators as measured
from rnndiag.recorder.measures.measure import Subject
from rnndiag.recorder.pass_subject import record_passes
from rnndiag.store.recording import Recording


def recording(
    model: nn.Module, measures: tuple[str, ...], T: int = 12
) -> tuple[Recording, list[LayerRun]]:
    torch.manual_seed(0)
    with rnndiag.probe(model) as probe:
        out, _ = model(torch.randn(T, 4, 3, dtype=torch.float64))
        (out - torch.randn_like(out)).square().mean().backward()
    extent = Extent(samples=None, sweep_steps=1e9)
    return record_passes(probe.backward_passes, measures, extent=extent), probe.layer_runs


def test_every_kind_of_estimator_is_compared_and_states_its_error() -> None:
    found, (run,) = recording(nn.LSTM(3, 4).double(), ("estimators",))
    step = RecordedStep(run.T, 2, clip_norm=1.0)
    recorded = {kind: kind.recorded(step) for kind in ESTIMATORS.values()}
    assert all(type(one) is kind for kind, several in recorded.items() for one in several)
    assert all(recorded.values())
    kinds = [one for several in recorded.values() for one in several]
    labels = {one.label for one in kinds}
    assert "chunk (2, 4)" in labels
    assert len([label for label in labels if "clipped" in label]) == 2
    assert len([label for label in labels if label.startswith("Bernoulli")]) == 2
    assert len([label for label in labels if label.startswith("roulette")]) == 3
    score = found["estimator_score", "l0"]
    names = score.coordinates["estimator"]
    assert len(names) == len(kinds)
    table = {name: score.sel(score=name).values for name in score.coordinates["score"]}
    noise = table["ranking"][names.index("full")]
    ranking = np.sqrt(table["bias"] ** 2 + (table["sd"] ** 2 + noise**2) * table["cost"])
    assert table["ranking"] == pytest.approx(ranking, rel=1e-5)  # full BPTT's ranking is σ
    assert (np.diff(table["ranking"]) >= 0).all()
    drawn = np.array([name.startswith(("Bernoulli", "ARTBP")) for name in names])
    for error in ("sd_error", "rmse_error", "draw_cosine_error"):
        assert (table[error][drawn] > 0).all(), error
        assert (table[error][~drawn] == 0).all(), error
    assert table["cosine"][names.index("full")] == pytest.approx(1)
    clipped = next(k for k, name in enumerate(names) if name.startswith("full, clipped"))
    assert table["bias"][clipped] == pytest.approx(0.5, rel=1e-5)
    assert table["cosine"][clipped] == pytest.approx(1)


def test_the_error_of_a_drawn_rmse_is_that_of_repeated_draws() -> None:
    _, (run,) = recording(nn.GRU(3, 4).double(), ("contributions",), T=8)
    one = rnndiag.estimators.Bernoulli(0.7)
    scores = [
        rnndiag.estimate(run, one, draws=32, generator=torch.Generator().manual_seed(seed))
        for seed in range(60)
    ]
    spread = float(np.std([score.rmse for score in scores]))
    assert float(np.median([score.rmse_error for score in scores])) == pytest.approx(
        spread, rel=0.5
    )
    clip = rnndiag.estimators.Clip(0.5 * scores[0].rmse, one)
    clipped = [
        rnndiag.estimate(run, clip, draws=32, generator=torch.Generator().manual_seed(seed))
        for seed in range(60)
    ]
    turn = float(np.std([score.cosine for score in clipped]))
    assert turn < 1.5 * float(np.median([score.cosine_error for score in clipped]))


def test_a_stack_is_stored_under_its_own_name() -> None:
    found, runs = recording(nn.LSTM(3, 4, num_layers=3).double(), ("lags",))
    assert found.layers == ("l0", "l1", "l2")
    assert found.notes["stacks"] == {"l0..l2": ["l0", "l1", "l2"]}
    sweep = rnndiag.lag_sweep(runs, budget=None)
    for quantity in ("window_bias", "window_cosine", "tail_mean_square"):
        stored, exact = found[quantity, "l0..l2"], getattr(sweep, quantity).numpy()
        at = stored.positions("lag").astype(int)
        np.testing.assert_allclose(stored.values, exact[at], rtol=1e-6, atol=1e-7)
    profile = found["credit_profile", "l0..l2"].values
    np.testing.assert_allclose(profile, sweep.credit_profile.numpy(), rtol=1e-6)


def test_only_what_is_fed_by_another_layer_is_a_stack() -> None:
    class Two(nn.Module):
        def __init__(self, between: nn.Module) -> None:
            super().__init__()
            self.first, self.second = nn.GRU(3, 4), nn.GRU(4, 4)
            self.between = between

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, None]:
            return self.second(self.between(self.first(x)[0]))[0], None

    found, _ = recording(Two(nn.Dropout(0.3)).double(), ("lags",))
    assert list(found.notes["stacks"]) == ["first.l0..second.l0"]
    found, _ = recording(Two(nn.Tanh()).double(), ("lags",))
    assert "stacks" not in found.notes
    both, _ = recording(nn.LSTM(3, 4, num_layers=2, bidirectional=True).double(), ("lags",))
    assert "stacks" not in both.notes


def test_the_price_of_a_sweep_is_shared_by_a_stack_and_its_layers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from rnndiag.recorder.measures import lags

    prices: list[float] = []
    sweep = lags.lag_sweep

    def watched(runs: object, *, budget: float, **rest: object) -> object:
        prices.append(budget)
        return sweep(runs, budget=budget, **rest)  # type: ignore[arg-type]

    monkeypatch.setattr(lags, "lag_sweep", watched)
    recording(nn.GRU(3, 4).double(), ("lags",))
    assert prices == [1e9]
    prices.clear()
    recording(nn.GRU(3, 4, num_layers=2).double(), ("lags",))
    assert prices == [5e8] * 3


def test_before_a_step_is_timed_estimators_take_about_a_second(monkeypatch: Any) -> None:
    layer = nn.GRU(3, 5)
    with rnndiag.probe(layer) as probe:
        layer(torch.randn(12, 6, 3))[0].square().sum().backward()
    (run,) = probe.layer_runs
    assert measured.sequences_within(run, 1e9) == run.B
    assert measured.sequences_within(replace(run, weights={}), 1.0) == run.B
    for count in (2, 3, 5):
        limit = measured.expected_seconds(run, count) + 1e-9
        monkeypatch.setattr(measured, "UNTIMED_SECONDS", limit)
        subject = Subject((run,), extent=Extent(untimed=True))
        assert list(measured.estimators(subject, run))
        assert subject.sampling[run.name].startswith(f"estimators: {count} of 6 sequences")
    monkeypatch.setattr(measured, "UNTIMED_SECONDS", 1e-6)
    subject = Subject((run,), extent=Extent(untimed=True))
    assert not list(measured.estimators(subject, run))
    assert "it takes about" in subject.not_measured[f"estimators of {run.name}"]
    unlimited = Subject((run,), extent=Extent())
    assert list(measured.estimators(unlimited, run))
