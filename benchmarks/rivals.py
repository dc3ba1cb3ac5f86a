"""What do other ways of getting the same numbers cost: loops, hooks, torch.func, a grad per lag, per-sample libraries?

    python benchmarks/rivals.py [--steps 100] [--batch 16] [--hidden 128] [--rounds 5] [--quick]

One LSTM with a head and a loss on every step. In each of four groups all ways take turns in one process on the same
weights and data; each way's result is compared with ours before any time is taken, and a time is printed as a multiple
of ours in the same round. Beside it stands what the way computes, and what it does not. BackPACK and Opacus come with
`pip install '.[bench]'`; without them their lines say so.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn
from torch.func import grad, jacrev, vmap
from torch.nn.functional import cross_entropy, linear

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import rnndiag
from benchmarks.promises import tell

CLASSES = 10
State = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Way:
    """One way of getting a group's numbers, and the words for its line."""

    name: str
    call: Callable[[], Tensor]
    computes: str
    lacks: str = "–"
    part: Callable[[Tensor], Tensor] = lambda ours: ours
    """The part of our result that this way computes."""


class Work:
    """The model, its data, and the loop that people write by hand on the same weights."""

    def __init__(self, steps: int, batch: int, hidden: int) -> None:
        torch.manual_seed(0)
        self.rnn, self.head = nn.LSTM(hidden, hidden), nn.Linear(hidden, CLASSES)
        self.x = torch.randn(steps, batch, hidden)
        self.y = torch.randint(CLASSES, (steps, batch))
        self.zero = torch.zeros(batch, hidden)
        self.w = {name: p.detach() for name, p in self.rnn.named_parameters()}

    def loss(self, outputs: Tensor) -> Tensor:
        """outputs (T, B, H) -> mean cross-entropy."""
        return cross_entropy(self.head(outputs).flatten(0, 1), self.y.flatten())

    def step_loss(self, u: int, h: Tensor) -> Tensor:
        """The share of one step in the loss."""
        return cross_entropy(self.head(h), self.y[u]) / len(self.y)

    def cell(self, x: Tensor, state: State, weight_hh: Tensor | None = None) -> State:
        """One step; rows of x and state (..., H) may be single sequences."""
        w = self.w
        weight_hh = w["weight_hh_l0"] if weight_hh is None else weight_hh
        a = linear(x, w["weight_ih_l0"], w["bias_ih_l0"]) + linear(
            state[0], weight_hh, w["bias_hh_l0"]
        )
        i, f, g, o = a.chunk(4, -1)
        c = f.sigmoid() * state[1] + i.sigmoid() * g.tanh()
        return o.sigmoid() * c.tanh(), c

    def loop(self, each: Callable[[State], State] = lambda state: state) -> list[State]:
        """The states of all steps, in one graph that starts at a state with gradient."""
        state, states = (self.zero.clone().requires_grad_(), self.zero), []
        for x in self.x:
            state = each(self.cell(x, state))
            states.append(state)
        return states

    def recorded(self) -> rnndiag.LayerRun:
        """One forward and backward pass, as the probe captures it."""
        with rnndiag.probe(self.rnn) as probe:
            self.loss(self.rnn(self.x)[0]).backward()
        return probe.layer_runs[0]


def adjoint_ways(work: Work) -> list[Way]:
    """∂L/∂h_t of every step, (T, B, H)."""

    def ours() -> Tensor:
        with rnndiag.probe(work.rnn) as probe:
            work.loss(work.rnn(work.x)[0]).backward()
        (run,) = probe.layer_runs
        adj = rnndiag.adjoints(run)
        analysis = (adj, rnndiag.contribution_norms(adj))
        assert rnndiag.prove([run], [analysis]).verdict == "exact"
        return adj.parts[0]

    def retained() -> Tensor:
        states = work.loop()
        for h, _ in states:
            h.retain_grad()
        work.loss(torch.stack([h for h, _ in states])).backward()
        return torch.stack([h.grad for h, _ in states if h.grad is not None])

    def hooks() -> Tensor:
        seen: list[Tensor] = []

        def watch(state: State) -> State:
            state[0].register_hook(seen.append)
            return state

        work.loss(torch.stack([h for h, _ in work.loop(watch)])).backward()
        return torch.stack(seen[::-1])

    def per_step() -> Tensor:
        states = work.loop()
        loss = work.loss(torch.stack([h for h, _ in states]))
        return torch.stack([torch.autograd.grad(loss, h, retain_graph=True)[0] for h, _ in states])

    return [
        Way(
            "rnndiag",
            ours,
            "δ of h and c, per-sample; |g_t| of every weight, by gate; three proofs",
        ),
        Way(
            "loop, retained gradients",
            retained,
            "gradients of h and c",
            "δ^c (c.grad adds the path through h), g_t, proof",
        ),
        Way("loop, a tensor hook a step", hooks, "gradients of h", "as above"),
        Way("loop, autograd.grad a step", per_step, "gradients of h, one pass a step", "as above"),
    ]


def contribution_ways(work: Work) -> list[Way]:
    """|g_t| of W_hh at every step, (T,)."""

    def ours() -> Tensor:
        return rnndiag.contribution_norms(rnndiag.adjoints(work.recorded()))["weight_hh"].norm

    def copies() -> Tensor:
        weights = [work.w["weight_hh_l0"].clone().requires_grad_() for _ in work.x]
        state, outputs = (work.zero, work.zero), []
        for x, weight in zip(work.x, weights, strict=True):
            state = work.cell(x, state, weight)
            outputs.append(state[0])
        work.loss(torch.stack(outputs)).backward()
        return torch.stack([w.grad.norm() for w in weights if w.grad is not None])

    def functional() -> Tensor:
        def loss(weights: Tensor) -> Tensor:
            state, outputs = (work.zero, work.zero), []
            for x, weight in zip(work.x, weights, strict=True):
                state = work.cell(x, state, weight)
                outputs.append(state[0])
            return work.loss(torch.stack(outputs))

        weight = work.w["weight_hh_l0"]
        return grad(loss)(weight.expand(len(work.x), *weight.shape)).flatten(1).norm(dim=1)

    def jacobians() -> Tensor:
        run = work.recorded()
        h, c = run.previous()
        one = jacrev(lambda s, x: torch.cat(work.cell(x, tuple(s.chunk(2, -1)))))
        matrices = vmap(vmap(one))(torch.cat([h, c], -1), work.x)
        direct = torch.cat(run.direct, -1)
        delta = [direct[-1]]
        for t in reversed(range(len(work.x) - 1)):
            delta.append(direct[t] + (delta[-1][:, None] @ matrices[t + 1])[:, 0])
        stacked = torch.stack(delta[::-1]).chunk(2, -1)
        weight = work.w["weight_hh_l0"]

        def g(x: Tensor, h: Tensor, c: Tensor, d_h: Tensor, d_c: Tensor) -> Tensor:
            def along(w: Tensor) -> Tensor:
                new = work.cell(x, (h, c), w)
                return (new[0] * d_h).sum() + (new[1] * d_c).sum()

            return grad(along)(weight).norm()

        return torch.stack([g(*given) for given in zip(work.x, h, c, *stacked, strict=True)])

    return [
        Way("rnndiag", ours, "|g_t| of all weights, by gate and sample, alignment"),
        Way(
            "loop, a copy of the weight a step",
            copies,
            "g_t of W_hh",
            "other weights (a copy each); memory T x |W|",
        ),
        Way(
            "torch.func.grad of that loop",
            functional,
            "g_t of W_hh",
            "the same; the model written as a function",
        ),
        Way(
            "torch.func: vmap(jacrev), recursion, grad a step",
            jacobians,
            "J_t, δ, g_t of W_hh",
            "needs the states; memory T B S²",
        ),
    ]


def lag_ways(work: Work) -> list[Way]:
    """The credit matrix: how much the loss at u depends on h at s, mean over the batch, (T, T)."""
    T = len(work.x)

    def size(gradient: Tensor) -> Tensor:
        return gradient.norm(dim=-1).mean()

    def whole(states: list[State], rows: Sequence[int], per_lag: bool) -> Tensor:
        found = torch.zeros(len(rows), T)
        for row, u in enumerate(rows):
            loss = work.step_loss(u, states[u][0])
            targets = [(h, c) for h, c in states[: u + 1]]
            if per_lag:
                for s in reversed(range(u + 1)):
                    pair = torch.autograd.grad(
                        loss, targets[s], retain_graph=True, allow_unused=True
                    )
                    found[row, s] = size(torch.cat([_own(work, states, s, *pair)], -1))
            else:
                flat = [part for pair in targets for part in pair]
                grads = torch.autograd.grad(loss, flat, retain_graph=True, allow_unused=True)
                for s in range(u + 1):
                    found[row, s] = size(_own(work, states, s, *grads[2 * s : 2 * s + 2]))
        return found

    def ours() -> Tensor:
        return rnndiag.credit_matrix(work.recorded()).float()

    return [
        Way("rnndiag.credit_matrix", ours, "every loss u, every lag: the whole matrix"),
        Way(
            "rnndiag.lag_sweep, all windows",
            lambda: rnndiag.lag_sweep(work.recorded(), budget=None, chunks=()).credit.float(),
            "the matrix, and the bias and cosine of every window",
        ),
        Way(
            "autograd.grad per lag, one loss",
            lambda: whole(work.loop(), [T - 1], True),
            "ONE row of the matrix",
            "the other rows, windows' gradients",
            lambda matrix: matrix[-1:],
        ),
        Way(
            "autograd.grad per loss",
            lambda: whole(work.loop(), range(T), False),
            "the whole matrix",
            "windows' gradients",
        ),
    ]


def _own(work: Work, states: list[State], s: int, d_h: Tensor | None, d_c: Tensor | None) -> Tensor:
    """(δ^h, δ^c) of one loss: autograd's gradient of c_s less the path through h_s of the same step."""
    h, c = states[s]
    d_h = torch.zeros_like(h) if d_h is None else d_h
    d_c = torch.zeros_like(c) if d_c is None else d_c
    (through,) = torch.autograd.grad(h, c, d_h, retain_graph=True)
    return torch.cat([d_h, d_c - through], -1)


def sample_ways(work: Work) -> list[Way | str]:
    """|g_b| of W_hh for every sequence, (B,)."""
    B = work.x.shape[1]

    def ours() -> Tensor:
        run = work.recorded()
        adj = rnndiag.adjoints(run)
        return torch.einsum("tbm,tbn->bmn", adj.a_hh, run.previous()[0]).flatten(1).norm(dim=1)

    def one_by_one() -> Tensor:
        sizes = []
        for b in range(B):
            work.rnn.zero_grad()
            out = work.head(work.rnn(work.x[:, b : b + 1])[0]).flatten(0, 1)
            (cross_entropy(out, work.y[:, b]) / B).backward()
            sizes.append(work.rnn.weight_hh_l0.grad.norm())
        return torch.stack(sizes)

    def functional() -> Tensor:
        def loss(weight: Tensor, x: Tensor, y: Tensor) -> Tensor:
            state, outputs = (work.zero[0], work.zero[0]), []
            for step in x:
                state = work.cell(step, state, weight)
                outputs.append(state[0])
            return cross_entropy(work.head(torch.stack(outputs)), y) / B

        each = vmap(grad(loss), (None, 1, 1))(work.w["weight_hh_l0"], work.x, work.y)
        return each.flatten(1).norm(dim=1)

    lacks = "which step it comes from; anything over lags"
    return [
        Way("rnndiag (adjoints, one einsum)", ours, "|g_b|; with δ of every step"),
        Way("one backward a sequence", one_by_one, "|g_b| of all weights", lacks),
        Way("torch.func: vmap(grad) of the loop", functional, "|g_b| of W_hh", lacks),
        _backpack(work, lacks),
        _opacus(work, lacks),
    ]


def _backpack(work: Work, lacks: str) -> Way | str:
    if find_spec("backpack") is None:
        return "BackPACK: not installed, skipped (pip install '.[bench]')"
    from backpack import backpack, extend
    from backpack.custom_module.permute import Permute
    from backpack.custom_module.reduce_tuple import ReduceTuple
    from backpack.extensions import BatchGrad

    H = work.x.shape[-1]
    rnn = nn.LSTM(H, H, batch_first=True)
    rnn.load_state_dict(work.rnn.state_dict())
    model = extend(nn.Sequential(rnn, ReduceTuple(0), deepcopy(work.head), Permute(0, 2, 1)))
    criterion = extend(nn.CrossEntropyLoss())

    def call() -> Tensor:
        model.zero_grad()
        with backpack(BatchGrad()):
            criterion(model(work.x.transpose(0, 1)), work.y.T).backward()
        return rnn.weight_hh_l0.grad_batch.flatten(1).norm(dim=1)

    return Way("BackPACK, BatchGrad", call, "|g_b| of all weights", f"{lacks}; no GRU, one layer")


def _opacus(work: Work, lacks: str) -> Way | str:
    if find_spec("opacus") is None:
        return "Opacus: not installed, skipped (pip install '.[bench]')"
    from opacus.grad_sample import GradSampleModule
    from opacus.layers import DPLSTM

    H = work.x.shape[-1]
    rnn = DPLSTM(H, H, batch_first=True)
    rnn.load_state_dict(work.rnn.state_dict())
    watched = GradSampleModule(rnn, batch_first=True, loss_reduction="sum")

    def call() -> Tensor:
        watched.zero_grad()
        out = work.head(watched(work.x.transpose(0, 1))[0])
        cross_entropy(out.flatten(0, 1), work.y.T.flatten()).backward()
        weight = next(p for n, p in watched.named_parameters() if "hh" in n and "weight" in n)
        return weight.grad_sample.flatten(1).norm(dim=1)

    return Way("Opacus, GradSampleModule", call, "|g_b| of all weights", f"{lacks}; its own LSTM")


GROUPS: dict[str, Callable[[Work], Sequence[Way | str]]] = {
    "adjoints of every step": adjoint_ways,
    "contribution of every step to W_hh": contribution_ways,
    "credit of every loss to every state": lag_ways,
    "gradient of every sequence": sample_ways,
}


def agree(way: Way, ours: Tensor, theirs: Tensor) -> None:
    """Stop where a way found other numbers than ours."""
    wanted = way.part(ours).detach().float()
    error = float((theirs.detach().float() - wanted).norm() / wanted.norm())
    if not error < 1e-3:
        raise SystemExit(f"{way.name} finds other numbers: {error:.1e} apart")


def group(name: str, work: Work, rounds: int) -> None:
    """One group's table."""
    given = GROUPS[name](work)
    ways = [way for way in given if isinstance(way, Way)]
    ours = ways[0].call()
    for way in ways[1:]:
        agree(way, ours, way.call())
    taken: dict[str, list[float]] = {way.name: [] for way in ways}
    for _ in range(rounds):
        for way in ways:
            start = time.perf_counter()
            way.call()
            taken[way.name].append(time.perf_counter() - start)
    print(f"\n### {name}\n\n| way | x ours: min | median | max | computes | does not |")
    print("|---|--:|--:|--:|---|---|")
    for way in ways:
        ratios = [a / b for a, b in zip(taken[way.name], taken[ways[0].name], strict=True)]
        words = f"{min(ratios):.2f} | {median(ratios):.2f} | {max(ratios):.2f}"
        if way is ways[0]:
            words = f"1 | {1e3 * median(taken[way.name]):.0f} ms | 1"
        else:
            tell(f"{name}: {way.name}", ratios, unit="x ours")
        print(f"| {way.name} | {words} | {way.computes} | {way.lacks} |", flush=True)
    for word in given:
        if isinstance(word, str):
            print(f"\n{word}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="T=20, B=8, H=32, two rounds")
    options = parser.parse_args()
    if options.quick:
        options.steps, options.batch, options.hidden, options.rounds = 20, 8, 32, 2
    warnings.simplefilter("ignore")  # the libraries' own words on hooks that torch deprecates
    torch.set_num_threads(options.threads)
    shape = f"T={options.steps} B={options.batch} H={options.hidden}"
    print(f"LSTM, {shape}, float32, {options.threads} threads, {options.rounds} rounds")
    for name in GROUPS:
        group(name, Work(options.steps, options.batch, options.hidden), options.rounds)


if __name__ == "__main__":
    main()
