"""Is the verdict of memory_need right where the truth is known, and is its promise kept?

    python -m benchmarks.need [--only ar leads nulls promise] [--seeds 3] [--null-seeds 12] [--quick]

ar: the gain promised beyond the window against its closed form. leads: the leading verdict of cases with known truth,
for RNN, LSTM and GRU. nulls: how often a need beyond the limit is claimed where there is none. promise: the promised
gain against what training with the longer window really brought. The whole form of the false alarms is
--null-seeds 120.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

import rnndiag

IGNORED = -100
KINDS: dict[str, type[nn.RNNBase]] = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}
Batch = dict[str, Tensor]
Draw = Callable[[torch.Generator], Batch]


class Net(nn.Module):
    """A recurrent layer and a linear head on all outputs, or on the last."""

    def __init__(self, kind: str, inputs: int, outputs: int, hidden: int = 24, last: bool = False):
        super().__init__()
        self.rnn = KINDS[kind](inputs, hidden, batch_first=True)
        self.head = nn.Linear(hidden, outputs)
        self.last = last

    def forward(self, x: Tensor, state: object = None) -> tuple[Tensor, object]:
        y, state = self.rnn(x, state)
        return self.head(y[:, -1:] if self.last else y), state


def loss_fn(model: nn.Module, batch: Batch) -> Tensor:
    """Cross-entropy of whole-number targets, squared error of others."""
    return loss_of(model(batch["x"])[0], batch["y"])


def loss_of(out: Tensor, target: Tensor) -> Tensor:
    if target.is_floating_point():
        return (out.squeeze(-1) - target).square().mean()
    return functional.cross_entropy(out.flatten(0, 1), target.flatten(), ignore_index=IGNORED)


def train(model: nn.Module, draw: Draw, steps: int, window: int | None, seed: int) -> None:
    """Adam with clipping; the state is detached after every `window` steps."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    for _ in range(steps):
        batch, outs, state = draw(generator), [], None
        for piece in batch["x"].split(window or batch["x"].shape[1], 1):
            out, state = model(piece, state)
            state = tuple(s.detach() for s in state) if isinstance(state, tuple) else state.detach()
            outs.append(out)
        loss = loss_of(outs[-1] if model.last else torch.cat(outs, 1), batch["y"])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()


def copy(
    lag: int, symbols: int = 2, share: float = 0.5, product: bool = False, steps: int = 30
) -> Draw:
    """The target is the symbol `lag` steps back, or its XOR with the present one."""

    def draw(generator: torch.Generator) -> Batch:
        drawn = torch.randint(0, symbols, (32, steps), generator=generator)
        if share != 0.5:
            drawn = (torch.rand(32, steps, generator=generator) < share).long()
        target = torch.full_like(drawn, IGNORED)
        target[:, lag:] = drawn[:, : steps - lag]
        if product:
            target[:, lag:] ^= drawn[:, lag:]
        return {"x": functional.one_hot(drawn, symbols).float(), "y": target}

    return draw


def autoregressive(order: int, weight: float, steps: int = 40) -> Draw:
    """x_t = weight x_(t-order) + noise of variance 1; the target is the next input."""

    def draw(generator: torch.Generator) -> Batch:
        x = torch.randn(32, steps + 1 + 10 * order, generator=generator)
        for t in range(order, x.shape[1]):
            x[:, t] += weight * x[:, t - order]
        x = x[:, 10 * order :]
        return {"x": x[:, :-1, None], "y": x[:, 1:]}

    return draw


def noise(real: bool) -> Draw:
    """Targets that have nothing to do with the inputs."""

    def draw(generator: torch.Generator) -> Batch:
        x = torch.randn(32, 25, 2, generator=generator)
        if real:
            return {"x": x, "y": torch.randn(32, 25, generator=generator)}
        return {"x": x, "y": torch.randint(0, 2, (32, 25), generator=generator)}

    return draw


def cue(steps: int) -> Draw:
    """One output a sequence: the class that the first input showed."""

    def draw(generator: torch.Generator) -> Batch:
        classes = torch.randint(0, 3, (32,), generator=generator)
        x = 0.3 * torch.randn(32, steps, 3, generator=generator)
        x[:, 0] += 3 * functional.one_hot(classes, 3)
        return {"x": x, "y": classes[:, None]}

    return draw


@dataclass(frozen=True)
class Case:
    """A task, how it is trained, the limit asked about, and the verdicts that are right."""

    name: str
    draw: Draw
    inputs: int
    outputs: int
    steps: int
    window: int | None
    beyond: int
    right: tuple[str, ...]
    last: bool = False
    batches: int = 12


CASES = (
    Case("copy 9 of 3, window 4", copy(9, 3), 3, 3, 300, 4, 4, ("needed_beyond",)),
    Case("copy 5, window 2", copy(5), 2, 2, 300, 2, 2, ("needed_beyond",)),
    Case("xor 0 and 8, window 4", copy(8, product=True), 2, 2, 300, 4, 4, ("needed_beyond",)),
    Case("rare 10 %, lag 6, window 3", copy(6, 2, 0.1), 2, 2, 300, 3, 3, ("needed_beyond",)),
    Case("AR(6) -.5, window 2", autoregressive(6, -0.5), 1, 1, 400, 2, 2, ("needed_beyond",)),
    Case("cue 18, window 4", cue(19), 3, 3, 60, 4, 4, ("needed_beyond",), True, 16),
    Case("noise, squared error", noise(True), 2, 1, 200, None, 5, ("nothing_found",)),
    Case("noise, cross-entropy", noise(False), 2, 2, 60, None, 5, ("nothing_found",)),
    Case("AR(2) .5, whole", autoregressive(2, 0.5, 30), 1, 1, 700, None, 8, ("nothing_found",)),
    Case("copy 2, solved", copy(2), 2, 2, 700, None, 5, ("solved",)),
)

AR = ((8, 0.4, 3), (8, 0.4, 1), (8, 0.2, 3), (8, 0.1, 3), (12, 0.3, 4), (4, 0.4, 1), (8, 0.0, 3))
"""Order, weight, window."""


def measured(
    case: Case, kind: str, seed: int, model: nn.Module | None = None
) -> rnndiag.MemoryNeed:
    """Train and measure."""
    torch.manual_seed(seed)
    if model is None:
        model = Net(kind, case.inputs, case.outputs, last=case.last)
    train(model, case.draw, case.steps, case.window, seed)
    generator = torch.Generator().manual_seed(10_000 + seed)
    batches = [case.draw(generator) for _ in range(case.batches)]
    return rnndiag.memory_need(model, batches, loss_fn, beyond=case.beyond, seed=seed)


def ar(quick: bool) -> None:
    """Promised gain (the present and all lags) against the gain of the true predictor on the same sequences."""
    print("| p, b, window | L | true gain | promised | found | lead |\n|---|---|---|---|---|---|")
    for order, weight, window in AR[:2] if quick else AR:
        draw = autoregressive(order, weight)
        case = Case("", draw, 1, 1, 600, window, window, (), batches=24)
        need = measured(case, "gru", 0)
        true = need.loss - best_loss(case, order, weight)
        promised = need.present.gain + need.within.gain + need.further.gain
        found = f"{promised / true:.0%}" if weight else "-"
        print(
            f"| {order} {weight} {window} | {need.loss:.3f} | {true:.4f} | {promised:.4f} | {found} | {need.lead} |",
            flush=True,
        )


def best_loss(case: Case, order: int, weight: float) -> float:
    """The loss of the best prediction, on the sequences that memory_need tested (the last 10 of 24 batches)."""
    generator = torch.Generator().manual_seed(10_000)
    found = []
    for batch in [case.draw(generator) for _ in range(case.batches)][14:]:
        best = torch.zeros_like(batch["y"])
        best[:, order - 1 :] = weight * batch["x"][:, : best.shape[1] - order + 1, 0]
        found.append(float((batch["y"] - best).square().mean()))
    return sum(found) / len(found)


def leads(seeds: int, quick: bool) -> None:
    """The leading verdict of every case, kind of net and seed."""
    right = total = 0
    print(
        "| case | net | seed | lead | right | plain steps | CPU s |\n|---|---|---|---|---|---|---|"
    )
    for case in CASES[::3] if quick else CASES:
        for kind in ("gru",) if quick else KINDS:
            for seed in range(seeds):
                start = time.process_time()
                need = measured(case, kind, 500 + seed)
                seconds = time.process_time() - start
                good = need.lead in case.right
                right, total = right + good, total + 1
                print(
                    f"| {case.name} | {kind} | {seed} | {need.lead} | {'yes' if good else 'NO'} "
                    f"| {need.plain_steps:.0f} | {seconds:.1f} |",
                    flush=True,
                )
    print(f"\n{right} of {total} leading verdicts are right.")


def nulls(seeds: int) -> None:
    """How often a need beyond the limit passes both tests, and how often it also passes the gate."""
    cases = [
        Case("noise, cross-entropy, untrained", noise(False), 2, 2, 1, None, 4, (), batches=8),
        Case("noise, cross-entropy", noise(False), 2, 2, 40, None, 4, (), batches=8),
        Case("noise, squared error", noise(True), 2, 1, 40, None, 4, (), batches=8),
        Case("AR(1), whole", autoregressive(1, 0.4), 1, 1, 300, None, 4, (), batches=8),
    ]
    print(f"| null ({seeds} seeds) | both tests | and the gate |\n|---|---|---|")
    for case in cases:
        found = [measured(case, "gru", seed) for seed in range(seeds)]
        tests = sum(need.further.significant for need in found) / seeds
        gate = sum(need.further.passes(need.gate) for need in found) / seeds
        print(f"| {case.name} | {tests:.3f} | {gate:.3f} |", flush=True)


def promise(quick: bool) -> None:
    """The gain promised beyond the window against the fall that training on with a longer one brought."""
    cases = [
        Case("copy 6", copy(6), 2, 2, 300, 3, 3, ()),
        Case("xor 0 and 6", copy(6, product=True), 2, 2, 300, 3, 3, ()),
        Case("AR(8) .4", autoregressive(8, 0.4), 1, 1, 600, 3, 3, ()),
        Case("AR(1) .4", autoregressive(1, 0.4), 1, 1, 400, 3, 3, ()),
        Case("rare 10 %, lag 6", copy(6, 2, 0.1), 2, 2, 300, 3, 3, ()),
    ]
    print("| task | promised | longer window | same window | realised |\n|---|---|---|---|---|")
    for case in cases[:1] if quick else cases:
        losses, promised = {}, math.nan
        for window in (None, case.window):
            torch.manual_seed(0)
            model = Net("gru", case.inputs, case.outputs)
            need = measured(case, "gru", 0, model)
            promised = need.further.gain
            train(model, case.draw, 800, window, 1)
            generator = torch.Generator().manual_seed(77)
            with torch.no_grad():
                found = [float(loss_fn(model, case.draw(generator))) for _ in range(24)]
            losses[window] = sum(found) / len(found)
        long, same = losses[None], losses[case.window]
        print(
            f"| {case.name} | {promised:.4f} | {long:.4f} | {same:.4f} | {same - long:.4f} |",
            flush=True,
        )


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--only", nargs="+", default=["ar", "leads", "nulls", "promise"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--null-seeds", type=int, default=12)
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    tables: dict[str, Callable[[], None]] = {
        "ar": lambda: ar(args.quick),
        "leads": lambda: leads(1 if args.quick else args.seeds, args.quick),
        "nulls": lambda: nulls(3 if args.quick else args.null_seeds),
        "promise": lambda: promise(args.quick),
    }
    for name in args.only:
        print(f"\n## {name}\n", flush=True)
        tables[name]()


if __name__ == "__main__":
    main()
