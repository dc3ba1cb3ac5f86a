"""A window that sets itself: its statistics, its bound, its decisions, and what it does to training (nothing)."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import rnndiag
from rnndiag import train
from rnndiag.errors import BadArgument
from rnndiag.train.look import Look
from rnndiag.train.window_looks import tails_by_sequence

sys.path.insert(0, str(Path(__file__).parents[2]))
from benchmarks import auto_window as bench

B, I, H = 16, 3, 5


def shares_of(tails: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """own and reach of tails (windows, B, P)."""
    return (tails**2).sum(-1), (tails * tails.sum(1, keepdims=True)).sum(-1)


def look_of(auto: train.Auto, bias: dict[int, float], seed: int, snr: float = 4.0) -> Look:
    """A look at a gradient with the given bias by window; the tail is a share of the gradient itself."""
    draw = np.random.default_rng(seed)
    g = draw.standard_normal((B, 30)) / np.sqrt(30)
    g[:, 0] += snr / np.sqrt(B)
    rho = np.array([1.0, *(bias.get(w, 0.0) for w in auto.grid)])
    found = Look.of_shares((0, *auto.grid), *shares_of(rho[:, None, None] * g[None]))
    assert found is not None
    return found


def unbiased_square(q: np.ndarray, scale: float) -> float:
    """The mean of <q_b, q_c> over pairs of different sequences, for a batch of `scale` sequences."""
    n = len(q)
    pairs = [q[b] @ q[c] for b in range(n) for c in range(n) if b != c]
    return float(np.mean(pairs)) * scale**2


def test_a_look_holds_u_statistics_and_their_jackknife() -> None:
    draw = np.random.default_rng(0)
    tails = draw.standard_normal((3, B, 4)) + 0.3
    look = Look.of_shares((0, 4, 8), *shares_of(tails))
    assert look is not None
    w = 1 / (tails[0] ** 2).sum()
    left: Any = np.zeros((3, B))
    for k, q in enumerate(tails):
        assert look.mean_square[k] == pytest.approx(w * unbiased_square(q, B))
        for b in range(B):
            left[k, b] = w * unbiased_square(np.delete(q, b, 0), B)
    deviation = left - left.mean(1, keepdims=True)
    np.testing.assert_allclose(look.variance, (B - 1) / B * (deviation**2).sum(1))
    np.testing.assert_allclose(look.covariance, (B - 1) / B * (deviation * deviation[0]).sum(1))
    np.testing.assert_allclose(look.energy, w * (tails**2).sum((1, 2)))
    np.testing.assert_allclose(look.energy_squared, ((w * (tails**2).sum(2)) ** 2).sum(1))
    total = tails[0].sum(0)
    spread = ((tails[0] - total / B) ** 2).sum() * B / (B - 1)
    assert look.noise == pytest.approx(w * spread)


def layer_run(T: int = 12) -> Any:
    torch.manual_seed(0)
    rnn = nn.LSTM(I, H).double()
    with rnndiag.probe(rnn) as probe:
        outputs, _ = rnn(torch.randn(T, B, I, dtype=torch.double))
        (outputs[-1] ** 2).sum().backward()
    return probe.layer_runs[0]


def tails_by_hand(run: Any, windows: list[int]) -> np.ndarray:
    """Tails of each sequence alone, from the exact lag gradients: (windows, B, P)."""
    found = []
    for b in range(B):
        c = rnndiag.lag_sweep(run.select([b]), budget=None, lag_gradients=True).lag_gradients
        flat = torch.cat([value.flatten(1) for value in c.values()], 1)
        found.append(torch.stack([flat[w:].sum(0) for w in windows]))
    return torch.stack(found, 1).numpy()


def test_a_sweep_and_a_pass_over_the_horizon_give_the_same_look() -> None:
    """With one loss, at the end, the tail beyond a window is what the steps before it give."""
    run, windows = layer_run(), [0, 1, 4, 6, 12]
    own, reach = shares_of(tails_by_hand(run, windows))
    for found in (tails_by_sequence([run], windows), _of_sweep(run, windows)):
        np.testing.assert_allclose(found[0], own, rtol=1e-8, atol=1e-18)
        np.testing.assert_allclose(found[1], reach, rtol=1e-8, atol=1e-18)


def _of_sweep(run: Any, windows: list[int]) -> tuple[Tensor, Tensor]:
    sweep = rnndiag.lag_sweep(run, budget=None)
    return sweep.sequence_squares[windows], sweep.sequence_products[windows]


def test_the_bound_is_violated_in_at_most_five_of_a_hundred_runs() -> None:
    names = {"SNR 3, kappa 0.5", "2 dimensions, SNR 3", "t3 noise, SNR 1", "SNR 0.3, kappa 0.1"}
    cases = tuple(case for case in bench.CASES if case.name in names)
    old, bench.CASES = bench.CASES, cases
    try:
        rows = bench.table_1(runs=100, looks=24)
    finally:
        bench.CASES = old
    assert len(rows) == 4
    for name, relative, composite, _ in rows:
        assert relative <= 0.05, name
        assert composite <= 0.05, name


def test_influence_balancing_has_its_known_values_and_no_window_below_41_stays_in_use() -> None:
    g = bench.influences(200).cumsum(0)
    expected = {1: 1.0, 10: 10.0, 41: -0.219, 200: -6.0}
    for w, value in expected.items():
        assert float(g[w - 1]) == pytest.approx(value, abs=5e-4)
    for _, _, settled, smallest in bench.table_2(seeds=1):
        assert settled == "64"
        assert smallest >= 54


def test_it_shrinks_after_a_patient_proof_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    auto = train.Auto(200, every=1)
    bias = {w: 0.02 if w >= 48 else 0.5 for w in auto.grid}
    with caplog.at_level("INFO", "rnndiag.train"):
        for step in range(40):
            auto.see(look_of(auto, bias, step), step, loss=1.0 if step < 4 else 0.3)
    (change,) = auto.history
    assert (change.before, change.after, auto.window, change.reason) == (200, 48, 48, "proved")
    assert change.looks >= auto.patience
    assert change.bound <= 0.1
    assert change.sequences == change.looks * B
    assert change.sentence.startswith(
        f"window 200 -> 48 at step {change.step}: over {change.looks} looks"
    )
    assert f"seen: 200 steps back, {change.sequences} sequences" in change.sentence
    assert change.sentence in caplog.text


def test_it_holds_the_longest_while_the_loss_has_not_moved() -> None:
    auto = train.Auto(64, every=1)
    for step in range(100):
        auto.see(look_of(auto, {}, step), step, loss=1.0)
    assert (auto.window, auto.history) == (64, [])
    for step in range(100, 120):
        auto.see(look_of(auto, {}, step), step, loss=1.0)
    assert auto.window == 4


def test_it_grows_at_once_and_goes_back_when_a_proof_is_old() -> None:
    auto = train.Auto(64, start=8, every=1)
    for step in range(8):
        auto.see(look_of(auto, {w: 0.6 for w in auto.grid if w < 32}, step), step, 1.0)
    assert (auto.window, auto.history[-1].reason) == (32, "bias")
    assert auto.history[-1].sentence.startswith("window 8 -> 32 at step 7: bias about 6")
    for keep, window in (("longest", 64), ("hold", 16)):
        auto = train.Auto(64, start=16, every=1, expiry=10, on_unresolved=keep)  # type: ignore[arg-type]
        for step in range(12):  # noise only, and as strong in every tail: nothing is shown
            draw = np.random.default_rng(step)
            g = np.broadcast_to(draw.standard_normal((B, 6)), (len(auto.grid) + 1, B, 6))
            auto.see(Look.of_shares((0, *auto.grid), *shares_of(g)), step, 1.0)
        assert auto.window == window


def test_it_never_shrinks_on_a_tail_of_a_few_sequences() -> None:
    auto = train.Auto(32, every=1, floor=0.0)
    for step in range(40):
        draw = np.random.default_rng(step)
        g = draw.standard_normal((B, 30)) / np.sqrt(30)
        g[:, 0] += 1.0
        rare = 0.05 * g * (np.arange(B) == 0)[:, None] * (step % 4 == 0)
        tails = np.stack([g, *(rare for _ in auto.grid)])
        auto.see(Look.of_shares((0, *auto.grid), *shares_of(tails)), step, 1.0 if step < 4 else 0.1)
    assert auto.window == 32


def test_its_state_goes_through_json() -> None:
    one, two = train.Auto(64, every=1), train.Auto(64, every=1)
    bias = {w: 0.02 if w >= 24 else 0.5 for w in one.grid}
    for step in range(10):
        one.see(look_of(one, bias, step), step, 1.0 if step < 4 else 0.3)
    two.load_state_dict(json.loads(json.dumps(one.state_dict())))
    for step in range(10, 30):
        for auto in (one, two):
            auto.see(look_of(auto, bias, step), step, 0.3)
    assert one.window == two.window == 24
    assert one.history == two.history
    with pytest.raises(BadArgument, match="same longest"):
        train.Auto(32).load_state_dict(one.state_dict())


def test_options_that_cannot_be_meant_are_refused() -> None:
    wrong: list[dict[str, Any]] = [
        {"shortest": 80},
        {"start": 100},
        {"eps": 0.0},
        {"horizon": 20},
        {"every": "10"},
        {"every": 0},
        {"on_unresolved": "shortest"},
    ]
    for options in wrong:
        with pytest.raises(BadArgument):
            train.Auto(64, **options)
    with pytest.raises(BadArgument, match="at least 16"):
        Look.of_shares((0, 4), np.ones((2, 8)), np.ones((2, 8)))


class Body(nn.Module):
    """A GRU that predicts its input's sum one step on."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.GRU(I, H, batch_first=True), nn.Linear(H, 1)

    def step(self, chunk: Any, state: Any) -> Any:
        x, y = chunk
        out, state = self.rnn(x, state)
        return nn.functional.mse_loss(self.head(out), y), state


def stream(batches: int, T: int = 16) -> list[tuple[Tensor, Tensor]]:
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(B, batches * T, I, generator=draw)
    y = x.sum(-1, keepdim=True)
    return list(zip(x.split(T, 1), y.split(T, 1), strict=True))


def test_looks_leave_training_as_it_is() -> None:
    """While the longest window is held, the weights are those of the fixed window, bit for bit."""
    import lightning.pytorch as L

    class Net(train.TruncatedBPTT, L.LightningModule):  # type: ignore[misc]
        def __init__(self, window: Any) -> None:
            super().__init__(k1=4, window=window, stateful=True)
            self.body = Body()
            self.drop = nn.Dropout(0.2)

        def tbptt_step(self, chunk: Any, state: Any) -> Any:
            return self.body.step((self.drop(chunk[0]), chunk[1]), state)

        def configure_optimizers(self) -> Any:
            return torch.optim.Adam(self.parameters(), 1e-2)

    trained = []
    quiet: dict[str, Any] = {"max_epochs": 1, "accelerator": "cpu", "logger": False}
    quiet |= {
        f"enable_{name}": False for name in ("checkpointing", "model_summary", "progress_bar")
    }
    for window in (12, train.Auto(12, horizon=24, every=2, patience=99)):
        torch.manual_seed(0)
        net = Net(window)
        torch.manual_seed(1)
        L.Trainer(**quiet).fit(net, torch.utils.data.DataLoader(stream(8), batch_size=None))
        trained.append(net)
    fixed, auto = trained
    assert auto.tbptt_auto.looks >= 6
    for one, two in zip(fixed.parameters(), auto.parameters(), strict=True):
        assert torch.equal(one, two)


def test_a_chunk_loop_with_looks_moves_its_window() -> None:
    """The task has no memory at all, so short windows are proved once the loss has moved."""
    torch.manual_seed(0)
    body = Body()
    optimizer = torch.optim.Adam(body.parameters(), 1e-2)
    loop = train.ChunkLoop(body.step, train.PlainUpdates(optimizer), 4)
    auto = train.Auto(32, shortest=4, horizon=64, every=2, patience=4)
    loop.follow(auto, body)
    state = None
    for batch in stream(60):
        state = loop.run(batch, state).state
    assert auto.looks > 30
    assert loop.window == auto.window < 32
    assert all(change.before > change.after for change in auto.history[:1])


def test_too_few_sequences_hold_the_longest_and_say_so() -> None:
    body = Body()
    loop = train.ChunkLoop(body.step, train.PlainUpdates(), 4)
    auto = train.Auto(8, every=1)
    loop.follow(auto, body)
    x, y = stream(1)[0]
    with pytest.warns(UserWarning, match="stays at 8: A batch has 4 sequences"):
        loop.run((x[:4], y[:4]))
    assert loop.window == 8


def test_a_loss_that_mixes_the_sequences_holds_the_longest_and_says_so() -> None:
    body = Body()

    def step(chunk: Any, state: Any) -> Any:
        out, state = body.rnn(chunk[0], state)
        found = body.head(out)
        return nn.functional.mse_loss(found - found.mean(0), chunk[1]), state

    loop = train.ChunkLoop(step, train.PlainUpdates(), 4)
    loop.follow(train.Auto(8, every=1), body)
    with pytest.warns(UserWarning, match="stays at 8: the loss mixes the samples"):
        loop.run(stream(1)[0])
    assert loop.window == 8
