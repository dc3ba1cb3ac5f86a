"""How often is the bound of a window that sets itself wrong, and what does it do on known programs?

    python -m benchmarks.auto_window                  # tables T1 and T2, and the coverage of the whole controller
    python -m benchmarks.auto_window recall ar3 cost  # trained nets; minutes each

T1: share of runs in which the any-time bound was below the true bias at any of 64 looks; nominal 5 %.
T2: influence balancing (Tallec & Ollivier 2017), where a window of 41 has the right sign and 96 % bias.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rnndiag.train import Auto, Look
from rnndiag.train.bias_bound import Sums, floor_bound, relative_bound

LOOKS, B, FIRST, FLOOR, EFFECTIVE = 64, 16, 4, 0.3, 50


@dataclass(frozen=True)
class Case:
    """Looks with a known bias: g_b = mean + noise, S_b = rho mean + a share kappa of that noise.

    Args of a sequence's share of the gradient, in `dimensions` dimensions: `snr` is |E g| over the noise of the batch,
    `rare` the share of sequences that have a tail at all, `shrink` the factor of the gradient from look to look.
    """

    name: str
    snr: float
    kappa: float
    rho: float = 0.1
    dimensions: int = 50
    heavy: bool = False
    shrink: float = 1.0
    rare: float = 1.0

    def shares(self, runs: int, looks: int, draw: np.random.Generator) -> tuple[np.ndarray, ...]:
        """own and reach of (g, S), each (looks, runs, 2, B)."""
        shape = (runs, B, self.dimensions)
        mean = np.zeros(self.dimensions)
        mean[0] = self.snr / np.sqrt(B)  # of one sequence; its noise has length 1
        own, reach = [], []
        for look in range(looks):
            size = self.shrink**look
            noise = (
                draw.standard_t(3, shape) / np.sqrt(3)
                if self.heavy
                else draw.standard_normal(shape)
            )
            noise = noise / np.sqrt(self.dimensions)
            g = size * (mean + noise)
            has_tail = draw.random((runs, B, 1)) < self.rare
            S = (
                size
                * has_tail
                * (self.rho * mean / self.rare + self.kappa * noise / np.sqrt(self.rare))
            )
            both = np.stack([g, S], 1)  # (runs, 2, B, P)
            total = both.sum(2, keepdims=True)
            own.append((both**2).sum(-1))
            reach.append((both * total).sum(-1))
        return np.stack(own), np.stack(reach)


CASES = (
    *(Case(f"SNR {snr:g}, kappa {k:g}", snr, k) for snr in (3, 1, 0.3, 0.1) for k in (0.5, 0.1)),
    Case("2 dimensions, SNR 3", 3, 0.5, dimensions=2),
    Case("1 dimension, SNR 1", 1, 0.5, dimensions=1),
    Case("t3 noise, SNR 3", 3, 0.1, heavy=True),
    Case("t3 noise, SNR 1", 1, 0.5, heavy=True),
    Case("gradient shrinks 5 % a look", 3, 0.5, shrink=0.95),
    Case("tail in 1 of 5", 3, 0.1, rare=1 / 5),
    Case("tail in 1 of 20", 3, 0.1, rare=1 / 20),
    Case("tail in 1 of 200", 3, 0.1, rare=1 / 200),
)


def statistics(own: np.ndarray, reach: np.ndarray) -> dict[str, np.ndarray]:
    """What `Look` keeps, for many runs at once: arrays (looks, runs, 2) and (looks, runs)."""
    w = 1 / own[..., 0, :].sum(-1)
    total = reach.sum(-1)
    crossed = total - own.sum(-1)
    left = (crossed[..., None] - 2 * (reach - own)) * B * B / ((B - 1) * (B - 2))
    deviation = left - left.mean(-1, keepdims=True)
    factor = (B - 1) / B * w[..., None] ** 2
    return {
        "N": crossed * B / (B - 1) * w[..., None],
        "v": factor * (deviation**2).sum(-1),
        "c": factor * (deviation * deviation[..., :1, :]).sum(-1),
        "energy": own.sum(-1) * w[..., None],
        "squared": ((own * w[..., None, None]) ** 2).sum(-1),
        "noise": B / (B - 1) * (own[..., 0, :].sum(-1) - total[..., 0] / B) * w,
    }


def upper(found: dict[str, np.ndarray], t: int, alpha: float, floor: float) -> np.ndarray:
    """The bound of every run after t looks, as `Auto.bounds` has it."""
    N, v, c = (found[name][:t] for name in ("N", "v", "c"))
    sums = Sums.of(N[..., 1], N[..., 0], v[..., 1], v[..., 0], c[..., 1])
    bound = relative_bound(sums, alpha / 2 if floor else alpha)
    small = np.zeros(bound.shape, bool)
    if floor:
        floors = floor**2 * found["noise"][:t].sum(0)
        bound = np.minimum(bound, floor_bound(sums, floors, alpha / 2))
        small = 100 * B * found["energy"][:t, :, 1].mean(0) <= 0.01 * floors / t
    energy, squared = found["energy"][:t, :, 1].sum(0), found["squared"][:t, :, 1].sum(0)
    enough = energy**2 / np.maximum(squared, 1e-300) >= EFFECTIVE
    return np.where(enough | small, bound, np.inf)


def table_1(runs: int, looks: int, seed: int = 0) -> list[tuple[str, float, float, str]]:
    """Case, violations of the bound of |E S| / |E g|, of the composite bound, median looks to prove 0.1 at rho / 2."""
    rows = []
    for case in CASES:
        found = statistics(*case.shares(runs, looks, np.random.default_rng(seed)))
        easier = Case(**{**vars(case), "rho": 0.05})
        half = statistics(*easier.shares(runs, looks, np.random.default_rng(seed + 1)))
        # Noise of the batch's gradient has length 1 in the units in which |E g| is snr.
        truth = case.rho * case.snr / max(case.snr, FLOOR)
        wrong, wrong_both = np.zeros(runs, bool), np.zeros(runs, bool)
        proved = np.full(runs, np.inf)
        for t in range(FIRST, looks + 1):
            wrong |= upper(found, t, 0.05, 0.0) < case.rho
            wrong_both |= upper(found, t, 0.05, FLOOR) < truth
            shown = upper(half, t, 0.05, FLOOR) <= 0.1
            proved = np.where(shown & np.isinf(proved), t, proved)
        median = float(np.median(proved))
        rows.append(
            (
                case.name,
                float(wrong.mean()),
                float(wrong_both.mean()),
                "never" if np.isinf(median) else f"{median:g}",
            )
        )
    return rows


# Influence balancing


def influences(lags: int, units: int = 23, positive: int = 10) -> Tensor:
    """c_d of the first unit: the influence of theta through the state d steps back, (lags,)."""
    A = 0.5 * torch.eye(units, dtype=torch.float64)
    A += 0.5 * torch.diag(torch.ones(units - 1, dtype=torch.float64), 1)
    drive = torch.ones(units, dtype=torch.float64)
    drive[positive:] = -1
    found = []
    for _ in range(lags):
        found.append(drive[0].clone())
        drive = A @ drive
    return torch.stack(found)


def balanced_look(auto: Auto, horizon: int, draw: np.random.Generator) -> Look:
    """One look at influence balancing: the tail of sequence b is its error e_b times the influence beyond w."""
    c = influences(horizon).numpy()
    tails = np.array([c[w:].sum() for w in (0, *auto.grid)])
    errors = 1 + draw.standard_normal(B)
    S = tails[:, None] * errors[None]
    look = Look.of_shares((0, *auto.grid), S**2, S * S.sum(1, keepdims=True))
    assert look is not None
    return look


def table_2(seeds: int) -> list[tuple[int, int, str, int]]:
    """Start, horizon, windows that the runs settled at, smallest window in use after the first eight looks."""
    rows = []
    for start, horizon in ((200, 200), (8, 200), (35, 200), (20, 200)):
        settled, smallest = set(), 200
        for seed in range(seeds):
            auto = Auto(200, start=start, every=1, patience=1)
            draw = np.random.default_rng(seed)
            for step in range(300):
                auto.see(balanced_look(auto, horizon, draw), step, 1.0 if step < 8 else 0.5)
                if step >= 8:
                    smallest = min(smallest, auto.window)
            settled.add(auto.window)
        rows.append((start, horizon, ", ".join(map(str, sorted(settled))), smallest))
    return rows


# The whole controller


def trajectories(
    runs: int, looks: int, memory: float, snr: float, drift: float
) -> tuple[float, str]:
    """Share of runs in which the controller ever shortened to a window whose true pooled bias was above eps.

    The bias of a window w is exp(-w / m_r) at look r, with m_r between `memory` and `drift` times it and back.
    """
    wrong, used = 0, []
    for seed in range(runs):
        draw, auto = np.random.default_rng(seed), Auto(200, every=1)
        mean = np.zeros(20)
        mean[0] = snr / np.sqrt(B)
        truths, bad = [], False
        for r in range(looks):
            m = memory * drift ** (0.5 - 0.5 * np.cos(2 * np.pi * r / 100))
            rho = np.exp(-np.array([0.0, *auto.grid]) / m)
            g = mean + draw.standard_normal((B, 20)) / np.sqrt(20)
            S = rho[:, None, None] * g[None]
            shares = (S**2).sum(-1), (S * S.sum(1, keepdims=True)).sum(-1)
            truths.append(rho[1:] * snr / max(snr, FLOOR))
            change = auto.see(_look(auto, shares), r, 1.0 if r < 8 else 0.5)
            if change is not None and change.reason == "proved":
                pooled = np.sqrt((np.stack(truths[-change.looks :]) ** 2).mean(0))
                bad |= bool(pooled[auto.grid.index(change.after)] > auto.eps)
        wrong += bad
        used.append(auto.window)
    return wrong / runs, f"{int(np.median(used))}"


def _look(auto: Auto, shares: tuple[np.ndarray, np.ndarray]) -> Look:
    look = Look.of_shares((0, *auto.grid), *shares)
    assert look is not None
    return look


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("what", nargs="*", default=["T1", "T2", "coverage"])
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=10)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if "T1" in options.what:
        print(f"T1: violations at any of {LOOKS} looks, {options.runs} runs, B = {B}, nominal 0.05")
        for name, alone, both, looks in table_1(options.runs, LOOKS):
            print(
                f"  {name:32} relative {alone:.3f}  with floor {both:.3f}  looks to prove {looks}"
            )
    if "T2" in options.what:
        g = influences(200).cumsum(0)
        exact = [float(g[w - 1]) for w in (1, 10, 41, 54, 200)]
        print(
            "T2: influence balancing, g_w for w = 1, 10, 41, 54, 200:",
            " ".join(f"{v:.3f}" for v in exact),
        )
        for start, horizon, settled, smallest in table_2(options.seeds):
            print(
                f"  start {start:3} horizon {horizon}: settled at {settled}; smallest after look 8: {smallest}"
            )
    if "coverage" in options.what:
        print("coverage of the controller: shortened to a window with a true pooled bias above eps")
        for memory, snr, drift in (
            (20, 3, 1),
            (20, 1, 1),
            (20, 3, 3),
            (20, 0.3, 1),
            (60, 3, 1),
            (10, 3, 8),
        ):
            share, window = trajectories(max(20, options.runs // 10), 300, memory, snr, drift)
            print(
                f"  memory {memory} SNR {snr} drift x{drift}: {share:.3f} of runs; median last window {window}"
            )


if __name__ == "__main__":
    main()
