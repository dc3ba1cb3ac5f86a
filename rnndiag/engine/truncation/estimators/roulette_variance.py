"""Russian roulette on lags: its variance from the tails, and the probabilities that minimise variance times cost."""

from __future__ import annotations

import torch
from torch import Tensor


def lag_costs(losses: Tensor) -> Tensor:
    """w_d (T,): cost of lag d in cell-steps over T, one cell-step for every loss that has a state d steps before it."""
    T = len(losses)
    steps = losses.nonzero().squeeze(1)
    return torch.tensor([float((steps >= d).sum()) / T for d in range(T)], dtype=torch.float64)


def roulette_variance(tail_squares: Tensor, survival: Tensor) -> float:
    """Σ_{d>=1} (1/P_d - 1/P_{d-1}) |S_d|², exactly. tail_squares (>= D,): |S_d|²; survival (D,): P_d = P(N >= d)."""
    total, before = 0.0, 1.0
    for d in range(1, len(survival)):
        square, now = float(tail_squares[d]), float(survival[d])
        if square > 0:
            if now == 0:
                return float("inf")
            total += (1 / now - 1 / before) * square
        before = now if now > 0 else before
    return total


def expected_cost(costs: Tensor, survival: Tensor) -> float:
    """Σ_d w_d P_d."""
    return float((costs[: len(survival)] * survival).sum())


def optimal_survival(tail_squares: Tensor, costs: Tensor, noise: float) -> Tensor:
    """P_d that minimise (variance + σ²) times expected cost, P_0 = 1, never rising.

    With v_d = |S_d|² - |S_{d+1}|² (v_0 = σ² - |S_1|²) and w_d the cost of lag d: adjacent violators of v_d / w_d are
    pooled before the root is taken, since a v_d can be negative; P_d = sqrt(pooled_d / pooled_0).
    """
    count = len(costs)
    squares = tail_squares.double().tolist()
    squares += [0.0] * (count + 1 - len(squares))
    value = [squares[d] - squares[d + 1] for d in range(count)]
    value[0] = noise**2 - squares[1]
    blocks: list[tuple[float, float, int]] = []
    for v, w in zip(value, costs.tolist(), strict=True):
        blocks.append((v, w, 1))
        while len(blocks) > 1 and _rises(blocks[-2], blocks[-1]):
            (v1, w1, n1), (v2, w2, n2) = blocks[-2:]
            blocks[-2:] = [(v1 + v2, w1 + w2, n1 + n2)]
    first = blocks[0]
    if first[0] <= 0 or first[1] <= 0:
        return torch.ones(count, dtype=torch.float64)
    base = first[0] / first[1]
    levels = [
        (max(v, 0.0) / w / base) ** 0.5 if w > 0 else 0.0 for v, w, n in blocks for _ in range(n)
    ]
    return torch.tensor(levels, dtype=torch.float64).clamp(max=1.0)


def _rises(one: tuple[float, float, int], two: tuple[float, float, int]) -> bool:
    """Whether v/w of the second block is at least that of the first; a block with w = 0 costs nothing."""
    return two[0] * one[1] >= one[0] * two[1]
