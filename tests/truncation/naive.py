"""Truncated gradients the slow, obvious way: every backward pass is run again, from a detached state, in float64.

Layers are (cell name, weights); a stack is a list of them. Nothing here comes from rnndiag but the layer runs that
`problem` returns beside the plain tensors.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from reference import STEPS, TWO_PARTS, State, draw_state, draw_weights, mask
from torch import Tensor

from rnndiag.engine.adjoints import adjoints
from rnndiag.engine.cells import find_cell
from rnndiag.engine.layer_run import LayerRun
from rnndiag.engine.unroll import unroll

Pass = tuple[int, int, Sequence[int]]
"""One backward pass: the first step whose state is reached, one past the last, and the losses' steps."""


@dataclass
class Problem:
    """A stack of layers with a loss Σ <e_t, s_t> on every layer's states, and its layer runs."""

    cells: list[str]
    weights: list[dict[str, Tensor]]
    inputs: Tensor
    initial: list[State]
    direct: list[State]
    """e_t of every layer, what comes through upper layers left out."""
    masks: list[Tensor]
    lengths: list[int] | None
    runs: list[LayerRun]

    @property
    def T(self) -> int:
        return self.inputs.shape[0]

    @property
    def run(self) -> LayerRun:
        (run,) = self.runs
        return run

    def step(self, weights: list[dict[str, Tensor]], t: int, states: list[State]) -> list[State]:
        x, new = self.inputs[t], []
        for layer, cell in enumerate(self.cells):
            state = STEPS[cell](weights[layer], x, states[layer])
            new.append(state)
            if layer < len(self.masks):
                x = state[0] * self.masks[layer][t]
            else:
                x = state[0]
        return new

    def trajectory(self) -> list[list[State]]:
        """States before step 0, 1, ... T, by layer."""
        states = [list(self.initial)]
        for t in range(self.T):
            states.append(self.step(self.weights, t, states[-1]))
        return states

    def gradient(self, passes: Iterable[Pass], factors: Tensor | None = None) -> Tensor:
        """Flat gradient of a list of backward passes. factors (T,): what crosses from t to t-1 is multiplied with."""
        before = self.trajectory()
        leaves = [{k: v.clone().requires_grad_() for k, v in w.items()} for w in self.weights]
        exists = mask(self.lengths or [self.T] * self.inputs.shape[1], self.T)
        total = torch.zeros((), dtype=torch.float64)
        for start, stop, losses in passes:
            states = before[start]
            for t in range(start, stop):
                if factors is not None and t > start:
                    xi = factors[t]
                    states = [tuple(xi * p + (1 - xi) * p.detach() for p in s) for s in states]
                states = self.step(leaves, t, states)
                if t in losses:
                    for own, state in zip(self.direct, states, strict=True):
                        for e, part in zip(own, state, strict=True):
                            total = total + (e[t] * part * exists[t][:, None]).sum()
        flat = [leaf for w in leaves for leaf in w.values()]
        if not total.requires_grad:
            return torch.cat([torch.zeros_like(leaf).flatten() for leaf in flat])
        grads = torch.autograd.grad(total, flat, allow_unused=True, materialize_grads=True)
        return torch.cat([g.flatten() for g in grads])

    def window(self, tau: int) -> Tensor:
        """Every loss reaches tau states, its own included; the first tau losses reach the start together."""
        first = min(tau, self.T)
        later = [(u - tau + 1, u + 1, [u]) for u in range(first, self.T)]
        return self.gradient([(0, first, range(first)), *later])

    def chunk(self, k1: int, k2: int) -> Tensor:
        """A backward pass every k1 steps through the last k2."""
        passes = []
        for end in range(k1, self.T + k1, k1):
            losses = range(end - k1, min(end, self.T))
            passes.append((min(max(0, end - k2), self.T), min(end, self.T), losses))
        return self.gradient(passes)

    def full(self) -> Tensor:
        return self.gradient([(0, self.T, range(self.T))])

    def sequences(self) -> list[Problem]:
        """Every sequence as a problem of its own."""
        return [
            Problem(
                self.cells,
                self.weights,
                self.inputs[:, b : b + 1],
                [tuple(p[b : b + 1] for p in s) for s in self.initial],
                [tuple(p[:, b : b + 1] for p in s) for s in self.direct],
                [m[:, b : b + 1] for m in self.masks],
                None if self.lengths is None else [self.lengths[b]],
                [],
            )
            for b in range(self.inputs.shape[1])
        ]


def problem(
    *cells: str,
    T: int = 12,
    B: int = 4,
    H: int = 4,
    lengths: Sequence[int] | None = None,
    losses: Sequence[int] | None = None,
    dropout: bool = False,
    upper_only: bool = False,
    seed: int = 0,
    scale: float = 1.0,
) -> Problem:
    """Random weights and losses; `losses`: the steps that have one (None: all); H inputs in every layer."""
    draw = torch.Generator().manual_seed(seed)
    weights = [draw_weights(c, H, H, seed=seed + k) for k, c in enumerate(cells)]
    for own in weights:
        own["weight_hh"] = own["weight_hh"] * scale
    inputs = torch.randn(T, B, H, dtype=torch.float64, generator=draw)
    initial = [draw_state(c, B, H, seed=seed + 7 + k) for k, c in enumerate(cells)]
    direct = []
    keep = torch.zeros(T, 1, 1, dtype=torch.float64)
    keep[list(range(T)) if losses is None else list(losses)] = 1
    exists = mask(list(lengths or [T] * B), T)[..., None]
    for layer, cell in enumerate(cells):
        parts = 1 + (cell in TWO_PARTS)
        silent = 0.0 if upper_only and layer < len(cells) - 1 else 1.0
        e = [torch.randn(T, B, H, dtype=torch.float64, generator=draw) for _ in range(parts)]
        direct.append(tuple(part * keep * exists * silent for part in e))
    between = cells[1:] if dropout else ()
    masks = [(torch.rand(T, B, H, generator=draw) < 0.7).double() / 0.7 for _ in between]
    found = Problem(list(cells), weights, inputs, initial, direct, masks, None, [])
    found.lengths = None if lengths is None else list(lengths)
    found.runs = layer_runs(found)
    return found


def layer_runs(p: Problem) -> list[LayerRun]:
    """The layer runs as a capture would hold them: a lower layer's direct gradient holds all that comes from above."""
    size = None if p.lengths is None else torch.tensor(p.lengths)
    inputs, runs = [p.inputs], []
    for layer, cell in enumerate(p.cells):
        run = unroll(
            find_cell(cell),
            p.weights[layer],
            inputs[-1],
            p.direct[layer],
            p.initial[layer],
            size,
            name=f"rnn.l{layer}",
        )
        runs.append(run)
        below = run.states[0]
        inputs.append(below * p.masks[layer] if layer < len(p.masks) else below)
    for layer in reversed(range(len(runs) - 1)):
        from_above = adjoints(runs[layer + 1]).inputs()
        if layer < len(p.masks):
            from_above = from_above * p.masks[layer]
        first, *rest = runs[layer].direct
        runs[layer] = replace(runs[layer], direct=(first + from_above, *rest))
    return runs


def flat(gradients: dict[str, Tensor]) -> Tensor:
    """Parameters side by side."""
    return torch.cat([g.flatten() for g in gradients.values()])
