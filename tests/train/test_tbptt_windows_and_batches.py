"""Windows longer and shorter than a chunk, packed and padded batches, two processes, and the command line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from rnndiag import train
from rnndiag.errors import BadArgument
from rnndiag.train.splitting import TimeBatch

B, T, I, H = 3, 20, 2, 4
HERE = Path(__file__).parent
QUIET: dict[str, Any] = {
    "max_epochs": 1,
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_model_summary": False,
    "enable_progress_bar": False,
}


class Stepped(nn.Module):
    """An LSTM cell in a loop, with dropout on the state at every step."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.cell, self.drop = nn.LSTMCell(I, H), nn.Dropout(dropout)

    def run(self, x: Tensor, state: Any) -> Any:
        total = torch.zeros(())
        for step in x.unbind(1):
            h, c = self.cell(step, state)
            state = self.drop(h), c
            total = total + h.square().sum()
        return total / x.shape[1], state


def batches(count: int = 2) -> list[Tensor]:
    draw = torch.Generator().manual_seed(1)
    return [torch.randn(B, T, I, generator=draw) for _ in range(count)]


def cut(state: Any) -> Any:
    return None if state is None else tuple(part.detach() for part in state)


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize(("k1", "k2"), [(4, 8), (4, 10), (4, 13), (5, 40), (6, 7), (1, 5)])
def test_a_window_longer_than_a_chunk_runs_the_steps_before_it_again(
    k1: int, k2: int, dropout: float
) -> None:
    """By hand: states and random draws are kept step by step; each pass runs the last k2 steps with today's weights."""
    torch.manual_seed(0)
    net, hand = Stepped(dropout), Stepped(dropout)
    hand.load_state_dict(net.state_dict())
    ours, theirs = (torch.optim.SGD(m.parameters(), 0.3, momentum=0.9) for m in (net, hand))
    torch.manual_seed(9)
    loop = train.ChunkLoop(net.run, train.PlainUpdates(ours), k1, k2)
    state = None
    for x in batches():
        state = loop.run(x, state).state
    torch.manual_seed(9)
    x = torch.cat(batches(), 1)
    bounds = [(s, min(s + k1, first + T)) for first in (0, T) for s in range(first, first + T, k1)]
    starts: dict[int, Any] = {}
    state = None
    for start, stop in bounds:
        starts[start] = cut(state), torch.get_rng_state()
        begin = max(0, stop - k2)
        anchor = max(s for s in starts if s <= begin)
        state = starts[anchor][0]
        for other in sorted(s for s in starts if anchor <= s < start):
            torch.set_rng_state(starts[other][1])
            end = min(b for a, b in bounds if a == other)
            if other < begin:
                with torch.no_grad():
                    _, state = hand.run(x[:, other : min(begin, end)], state)
            if begin < end:
                _, state = hand.run(x[:, max(other, begin) : end], state)
        torch.set_rng_state(starts[start][1])
        loss, state = hand.run(x[:, start:stop], state)
        state = cut(state)
        theirs.zero_grad()
        loss.backward()
        theirs.step()
    assert len(bounds) >= 8
    for one, two in zip(net.parameters(), hand.parameters(), strict=True):
        assert torch.equal(one, two)


def test_windows_of_one_update_a_batch_have_the_gradient_that_rnndiag_scores() -> None:
    """No weight moves between the chunks, so the sum of all passes is the (k1, k2) gradient."""
    torch.manual_seed(0)
    rnn = nn.GRU(I, H, batch_first=True).double()
    x = batches(1)[0].double()
    weights = torch.randn(B, T, H, dtype=torch.double)

    def step(chunk: Any, state: Any) -> Any:
        out, state = rnn(chunk[0], state)
        return (out * chunk[1]).sum(), state

    for k1, k2 in ((4, 9), (5, 2), (4, 4)):
        rnn.zero_grad()
        chunks = -(-T // k1)
        train.truncated_bptt(step, (x, weights), k1=k1, window=k2, update="batch")
        found = [p.grad.clone() * chunks for p in rnn.parameters()]  # type: ignore[union-attr]
        rnn.zero_grad()
        outputs, _ = train.unroll(rnn, x, estimator=train.Chunk(k1, k2))
        (outputs * weights).sum().backward()
        for one, p in zip(found, rnn.parameters(), strict=True):
            torch.testing.assert_close(one, p.grad, rtol=1e-10, atol=1e-12)


def test_packed_batches_are_cut_in_time_and_states_follow_the_order_of_the_batch() -> None:
    torch.manual_seed(0)
    lstm = nn.LSTM(I, H, batch_first=True)
    x, lengths, k = batches(1)[0], torch.tensor([9, 20, 13]), 6
    packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    labels = torch.tensor([0.1, 0.2, 0.3])
    optimizer = torch.optim.SGD(lstm.parameters(), 0.1)
    start = tuple(torch.randn(1, B, H) for _ in range(2))
    weights = {name: value.clone() for name, value in lstm.state_dict().items()}

    def step(chunk: Any, state: Any) -> Any:
        out, state = lstm(chunk["x"], state)
        values, _ = pad_packed_sequence(out, batch_first=True)
        return (values.sum((1, 2)) * chunk["label"]).sum(), state

    batch = {"x": packed, "label": labels}
    result = train.truncated_bptt(step, batch, start, k1=k, optimizer=optimizer)
    found = [p.detach().clone() for p in lstm.parameters()]
    lstm.load_state_dict(weights)
    optimizer = torch.optim.SGD(lstm.parameters(), 0.1)
    states = [tuple(part[:, b : b + 1] for part in start) for b in range(B)]
    for begin in range(0, T, k):
        loss = torch.zeros(())
        for b, n in enumerate(lengths.tolist()):
            if n > begin:
                out, state = lstm(x[b : b + 1, begin : min(begin + k, n)], states[b])
                states[b] = tuple(part.detach() for part in state)
                loss = loss + out.sum() * labels[b]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for one, two in zip(found, lstm.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-6)
    for b in range(B):
        for part, alone in zip(result.state, states[b], strict=True):
            torch.testing.assert_close(part[:, b : b + 1], alone, rtol=1e-4, atol=1e-6)


def test_lengths_of_a_padded_batch_count_within_the_chunk() -> None:
    batch = {"x": torch.arange(2 * 7).view(2, 7), "lengths": torch.tensor([3, 6]), "name": "a"}
    pieces = [TimeBatch(batch).piece(start, min(start + 3, 7)) for start in (0, 3, 6)]
    assert [piece["lengths"].tolist() for piece in pieces] == [[3, 3], [0, 3], [0, 0]]
    assert [piece["x"].shape[1] for piece in pieces] == [3, 3, 1]
    assert {piece["name"] for piece in pieces} == {"a"}


def test_padded_sequences_with_lengths_train_as_every_sequence_alone() -> None:
    torch.manual_seed(0)
    lstm = nn.LSTM(I, H, batch_first=True).double()
    x, lengths = batches(1)[0].double(), torch.tensor([9, 20, 13])

    def step(chunk: Any, state: Any) -> Any:
        out, state = train.unroll(lstm, chunk["x"], state, lengths=chunk["lengths"])
        mask = torch.arange(out.shape[1]) < chunk["lengths"][:, None]
        return (out.sum(-1) * mask).sum(), state

    train.truncated_bptt(step, {"x": x, "lengths": lengths}, k1=6, update="batch")
    found = [p.grad.clone() for p in lstm.parameters()]  # type: ignore[union-attr]
    lstm.zero_grad()
    for b, n in enumerate(lengths.tolist()):
        out, _ = train.unroll(lstm, x[b : b + 1, :n], estimator=train.Chunk(6))
        (out.sum() / 4).backward()
    for one, p in zip(found, lstm.parameters(), strict=True):
        torch.testing.assert_close(one, p.grad, rtol=1e-10, atol=1e-12)


def test_a_carried_state_needs_batches_of_equal_size() -> None:
    from train.tbptt_on_two_ranks import Net, data

    loader = torch.utils.data.DataLoader(data(), batch_size=5)
    with pytest.raises(BadArgument, match="drop_last=True"):
        L.Trainer(**QUIET).fit(Net(), loader)


class FromCommandLine(train.TruncatedBPTT, L.LightningModule):  # type: ignore[misc]
    """Options of the mixin that LightningCLI finds by **kwargs."""

    def __init__(self, hidden: int = 4, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.rnn = nn.GRU(I, hidden, batch_first=True)

    def tbptt_step(self, chunk: Any, state: Any) -> Any:
        out, state = self.rnn(chunk[0], state)
        return out.square().mean(), state


class Stream(L.LightningDataModule):
    """Two batches."""

    def train_dataloader(self) -> Any:
        rows = torch.utils.data.TensorDataset(torch.cat(batches()))
        return torch.utils.data.DataLoader(rows, batch_size=B)


def test_lightning_cli_sets_chunk_window_and_optimizer(monkeypatch: pytest.MonkeyPatch) -> None:
    from lightning.pytorch.cli import LightningCLI

    words = ["fit", "--model.k1=4", "--model.window=8", "--model.stateful=true"]
    words += ["--model.hidden=6", "--optimizer=Adam", "--lr_scheduler=ExponentialLR"]
    words += ["--lr_scheduler.gamma=0.5", "--trainer.gradient_clip_val=0.1"]
    words += [f"--trainer.{name}={value}" for name, value in QUIET.items()]
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # of what Lightning calls
    monkeypatch.setattr(sys, "argv", ["program", *words])
    cli = LightningCLI(
        FromCommandLine, Stream, save_config_callback=None, seed_everything_default=0
    )
    assert (cli.model.tbptt_k1, cli.model.tbptt_window) == (4, 8)
    assert cli.trainer.global_step == 2 * T // 4
    assert cli.trainer.optimizers[0].param_groups[0]["lr"] == 0.5e-3


def test_two_processes_train_on_the_mean_of_their_gradients(tmp_path: Path) -> None:
    from train.tbptt_on_two_ranks import B as ROWS
    from train.tbptt_on_two_ranks import K as K1
    from train.tbptt_on_two_ranks import Net, data

    paths = os.pathsep.join([str(HERE), str(HERE.parent.parent)])
    done = subprocess.run(
        [sys.executable, str(HERE / "tbptt_on_two_ranks.py"), str(tmp_path / "weights")],
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    weights, steps = torch.load(tmp_path / "weights", weights_only=True)
    torch.manual_seed(0)
    hand = Net()
    optimizer = torch.optim.SGD(hand.parameters(), 0.5)
    (x,) = data().tensors
    updates = 0
    for epoch in range(2):
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(epoch))
        states: list[Any] = [None, None]
        optimizer.zero_grad()
        count = 0
        for batch in range(len(x) // 2 // ROWS):
            rows = [order[rank::2][batch * ROWS : (batch + 1) * ROWS] for rank in (0, 1)]
            for start in range(0, x.shape[1], K1):
                for rank in (0, 1):
                    chunk = x[rows[rank], start : start + K1]
                    loss, states[rank] = hand.tbptt_step((chunk,), states[rank])
                    states[rank] = states[rank].detach()
                    (loss / 4).backward()
                count += 1
                if count % 2 == 0:
                    nn.utils.clip_grad_norm_(hand.parameters(), 0.1)
                    optimizer.step()
                    optimizer.zero_grad()
                    updates += 1
    assert steps == updates == 6
    for name, value in hand.state_dict().items():
        torch.testing.assert_close(weights[name], value, rtol=1e-6, atol=1e-8)


RNN = nn.GRU(1, 2, batch_first=True)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"k1": 2.5}, "k1 is 2.5"),
        ({"window": 2.5}, "window is 2.5"),
        ({"window": "auto"}, "window='auto'"),
        ({"clip": "1"}, "clip is '1'"),
        ({"step": lambda chunk, state: RNN(chunk, state)[0].mean()}, "not a loss and a state"),
        ({"step": lambda chunk, state: None}, "not a loss and a state"),
        ({"step": lambda chunk, state: (RNN(chunk)[0].mean(-1), None)}, r"shape \(3, 2\)"),
        ({"step": lambda chunk, state: (torch.zeros(()), None)}, "without a gradient"),
    ],
)
def test_arguments_and_steps_that_cannot_be_meant_are_refused(
    options: dict[str, Any], words: str
) -> None:
    options = {"step": lambda chunk, state: (RNN(chunk)[0].mean(), None), "k1": 2, **options}
    with pytest.raises(BadArgument, match=words):
        train.truncated_bptt(batch=torch.ones(3, 6, 1), **options)
