"""Does a window that sets itself learn what the best fixed one learns, and what do its looks cost?

    python -m benchmarks.auto_training recall --gap 50 --every 25
    python -m benchmarks.auto_training ar3 --hidden 128
    python -m benchmarks.auto_training cost

Sequences of 200 steps with one loss at the end, an LSTM of 32 units, batches of 32. Steps are those until the mean loss
of 20 steps is 0.1; a plain step of window w costs (1 + 2 w / T) / 3 of a full one.
"""

from __future__ import annotations

import argparse
from time import process_time
from typing import Any

import torch
from torch import Tensor, nn

from rnndiag import train

T, B, HIDDEN, SYMBOLS = 200, 32, 32, 4


class Net(nn.Module):
    """An LSTM whose last output is read."""

    def __init__(
        self, inputs: int, outputs: int, forget_bias: float | None, hidden: int = HIDDEN
    ) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(inputs, hidden), nn.Linear(hidden, outputs)
        with torch.no_grad():
            i, f = slice(0, hidden), slice(hidden, 2 * hidden)
            self.lstm.bias_ih_l0[f] = 0
            if forget_bias is not None:
                self.lstm.bias_hh_l0[f] = forget_bias
            else:  # chrono initialisation (Tallec & Ollivier 2018)
                bias = torch.log(torch.empty(hidden).uniform_(1, T - 1))
                self.lstm.bias_hh_l0[f], self.lstm.bias_hh_l0[i] = bias, -bias

    def step(self, chunk: Any, state: Any) -> tuple[Tensor, Any]:
        """Loss at the last step of a chunk; targets are whole."""
        x, target = chunk
        out, state = self.lstm(x, state)
        found = self.head(out[-1])
        if target.is_floating_point():
            return nn.functional.mse_loss(found[:, 0], target), state
        return nn.functional.cross_entropy(found, target), state


def recall(gap: int, draw: torch.Generator) -> tuple[Tensor, Tensor]:
    """One of 4 symbols, shown `gap` steps before the end among distractors."""
    noise = torch.randint(SYMBOLS, (T, B), generator=draw) + SYMBOLS
    symbol = torch.randint(SYMBOLS, (B,), generator=draw)
    noise[T - 1 - gap] = symbol
    return nn.functional.one_hot(noise, 2 * SYMBOLS).float(), symbol


def ar3(draw: torch.Generator) -> tuple[Tensor, Tensor]:
    """x_t = 0.6 x_{t-1} - 0.3 x_{t-2} + 0.3 x_{t-3} + noise of variance 1: predict the next."""
    noise = torch.randn(T + 51, B, generator=draw)
    x = torch.zeros(T + 51, B)
    for t in range(3, T + 51):
        x[t] = 0.6 * x[t - 1] - 0.3 * x[t - 2] + 0.3 * x[t - 3] + noise[t]
    return x[50:-1, :, None], x[-1]


def fit(
    make: Any,
    net: Net,
    window: int | None,
    auto: train.Auto | None,
    steps: int,
    stop: float,
    seed: int,
) -> tuple[int | None, float, float, float]:
    """Steps to the loss `stop` (None: not reached), last loss, cost in full steps, CPU seconds without drawing."""
    optimizer = torch.optim.Adam(net.parameters(), 2e-3)
    loop = train.ChunkLoop(
        net.step, train.PlainUpdates(optimizer, clip=1.0), None, window, time_dim=0
    )
    if auto is not None:
        loop.follow(auto, net)
    draw, recent, cost, seconds = torch.Generator().manual_seed(seed), [], 0.0, 0.0
    for number in range(1, steps + 1):
        cost += (1 + 2 * min(loop.window or T, T) / T) / 3
        batch, begun = make(draw), process_time()
        recent.append(float(loop.run(batch).loss))
        seconds += process_time() - begun
        if len(recent) >= 20 and sum(recent[-20:]) / 20 < stop:
            return number, sum(recent[-20:]) / 20, cost, seconds
    return None, sum(recent[-100:]) / 100, cost, seconds


def table_recall(gap: int, windows: list[int], seeds: int, steps: int, every: int | str) -> None:
    """A line a window."""
    forget_bias = {10: 1.0, 50: 2.0}.get(gap)
    for window in (None, *windows):
        for seed in range(seeds):
            torch.manual_seed(seed)
            net = Net(2 * SYMBOLS, SYMBOLS, forget_bias)
            auto = train.Auto(T, every=every) if window is None else None
            reached, loss, cost, seconds = fit(
                lambda draw: recall(gap, draw), net, window, auto, steps, 0.1, seed
            )
            name = "auto" if auto else f"window {window}"
            print(
                f"recall, gap {gap}, {name}, seed {seed}: "
                f"{f'{reached} steps' if reached else f'not in {steps} steps'}, loss {loss:.3f}, "
                f"cost {cost:.0f} full steps, {seconds:.1f} s CPU",
                flush=True,
            )
            _changes(auto)


def table_ar3(windows: list[int], seeds: int, steps: int, every: int | str, hidden: int) -> None:
    """A line a seed and window; the time saved is of CPU seconds, against the window of the whole sequence."""
    for seed in range(seeds):
        whole = 0.0
        for window in (T, None, *windows):
            torch.manual_seed(seed)
            auto = train.Auto(T, every=every) if window is None else None
            net = Net(1, 1, 1.0, hidden)
            _, loss, _, seconds = fit(ar3, net, window, auto, steps, 0.0, seed)
            whole = seconds if window == T else whole
            print(
                f"AR(3), LSTM {hidden}, {'auto' if auto else f'window {window}'}, seed {seed}: "
                f"loss of the last 100 steps {loss:.3f}, {seconds:.1f} s CPU, {1 - seconds / whole:.0%} saved"
                f"{f', {auto.looks} looks' if auto else ''}",
                flush=True,
            )
            _changes(auto)


def _changes(auto: train.Auto | None) -> None:
    for change in auto.history if auto else ():
        print(f"    {change.sentence}", flush=True)


def table_cost(repeats: int, units: int) -> None:
    """A look against a plain step: recall's whole sequences, and a stream of bytes in chunks of 80 (LSTM 48, B 32)."""
    for name, k1 in (("whole sequences of 200", None), ("chunks of 80, horizon 160", 80)):
        torch.manual_seed(0)
        length, symbols = (T, 2 * SYMBOLS) if k1 is None else (k1, 96)
        hidden = units if k1 is None else 48
        net = nn.ModuleList([nn.LSTM(symbols, hidden), nn.Linear(hidden, symbols)])

        def step(chunk: Any, state: Any, net: Any = net, last: bool = k1 is None) -> Any:
            out, state = net[0](nn.functional.one_hot(chunk, net[0].input_size).float(), state)
            found = net[1](out[-1:] if last else out)
            target = chunk[-1:] if last else chunk
            return nn.functional.cross_entropy(found.flatten(0, 1), target.flatten()), state

        updates = train.PlainUpdates(torch.optim.Adam(net.parameters()))
        loop = train.ChunkLoop(step, updates, k1, time_dim=0)
        auto = train.Auto(length, every=10**9, horizon=length if k1 is None else 2 * length)
        loop.follow(auto, net)
        state, plain, looks = None, [], []
        for number in range(4 + 3 * repeats):
            batch = torch.randint(symbols, (length, B))
            auto.every = 1 if number >= 4 and number % 3 == 0 else 10**9
            begun = process_time()
            state = loop.run(batch, None if k1 is None else state).state
            if number >= 4:
                (looks if auto.every == 1 else plain).append(process_time() - begun)
        base = sorted(plain)[len(plain) // 2]
        more = sorted(looks)[len(looks) // 2] - base
        print(
            f"a look, {name}: {more / base:.1f} plain steps ({more * 1e3:.1f} ms; a step {base * 1e3:.1f} ms)"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("what", nargs="+", choices=["recall", "ar3", "cost"])
    parser.add_argument("--gap", type=int, default=50)
    parser.add_argument("--windows", type=int, nargs="*", default=None)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--steps", type=int, default=None)
    parser.add_argument(
        "--every", default="10 %", help="how often to look: steps, or a share of time"
    )
    parser.add_argument(
        "--hidden", type=int, default=HIDDEN, help="units of the net of ar3 and cost"
    )
    options = parser.parse_args()
    every = int(options.every) if options.every.isdigit() else options.every
    torch.set_num_threads(1)
    if "cost" in options.what:
        table_cost(15, options.hidden)
    if "recall" in options.what:
        best = {10: [35], 50: [35, 96], 150: [35, 160]}.get(options.gap, [35])
        windows, steps = options.windows or best, options.steps or 1500
        table_recall(options.gap, windows, options.seeds, steps, every)
    if "ar3" in options.what:
        windows, steps = options.windows or [8], options.steps or 1000
        table_ar3(windows, options.seeds, steps, every, options.hidden)


if __name__ == "__main__":
    main()
