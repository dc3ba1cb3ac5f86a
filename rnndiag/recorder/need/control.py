"""Positive control: the smallest need that the fitted skips would find.

Finding no need proves nothing unless a small one would have been found. So the outputs are disturbed by a known random
function of the input some steps back, until the loss has risen by a share of R, and the same procedure is applied.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rnndiag.recorder.need.features import BILINEAR, LINEAR, SQUARE, Block
from rnndiag.recorder.need.screen import Screen
from rnndiag.recorder.need.skips import Design, Outputs, SkipFitter
from rnndiag.stats.need.flips import p_of_sum
from rnndiag.stats.need.gains import FLIPS, interval
from rnndiag.stats.need.numbers import P

BISECTIONS = 12


def planted_is_found(fitter: SkipFitter, base: Outputs, lags: range, cost: float) -> bool:
    """Whether a planted need is found by the skips of one group of lags.

    Args:
        fitter: The fitter with its three parts.
        base: Outputs that already hold what the present gains.
        lags: The group; its middle lag spoils the outputs.
        cost: How much the loss shall rise.
    """
    lag = lags[len(lags) // 2]
    perturbed = _perturbed(fitter, base, Block(LINEAR, lag, lag), cost)
    if perturbed is None:
        return False
    rows = fitter.parts[0].rows
    screen = Screen(rows, fitter.errors(perturbed, fitter.FIT))
    blocks = [Block(kind, d, d) for kind in (LINEAR, BILINEAR, SQUARE) for d in lags]
    picked = sorted(screen.scores(blocks), key=lambda score: -score.z)[:3]
    design = Design()
    restored = fitter.level(perturbed, design, [None])
    better = fitter.level(restored, design, [score.block for score in picked if score.z > 1])
    if better is restored:
        return False
    gains, _ = fitter.gains(restored, better)
    values = gains.numpy()
    return p_of_sum(values, FLIPS, fitter.loss.seed) <= P and interval(values)[1] > 0


def _perturbed(fitter: SkipFitter, base: Outputs, block: Block, rise: float) -> Outputs | None:
    """The outputs plus a random linear function of one lag, scaled so that the validation loss rises by `rise`."""
    generator = torch.Generator().manual_seed(fitter.loss.seed + 7)
    width = base.by_part[0][0].shape[-1]
    weights: Tensor | None = None
    changes: list[list[Tensor]] = []
    for part in fitter.parts:
        features = part.rows.lagged(block)
        if weights is None:
            weights = torch.randn(
                features.shape[1], width, generator=generator, dtype=torch.float64
            )
            weights = weights.to(features.device)
        rows = part.of_samples(features @ weights)
        changes.append([s.placed(r) for s, r in zip(part.samples, rows, strict=True)])

    def at(size: float) -> Outputs:
        return Outputs(
            tuple(
                [y + size * change for y, change in zip(ys, made, strict=True)]
                for ys, made in zip(base.by_part, changes, strict=True)
            )
        )

    def rise_at(size: float) -> float:
        part = fitter.parts[fitter.VALIDATION]
        new = at(size)
        before = fitter.losses(base, fitter.VALIDATION)
        after = fitter.losses(new, fitter.VALIDATION)
        weight = [s.batch_size / len(s.sequences) for s in part.samples]
        falls = [w * (a - b) for w, a, b in zip(weight, after, before, strict=True)]
        return sum(falls) / len(falls)

    low, high = 0.0, 1e-3
    while rise_at(high) < rise:
        low, high = high, high * 4
        if high > 1e4:
            return None
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        reached = rise_at(middle)
        if abs(reached - rise) <= 0.05 * rise:
            break
        low, high = (middle, high) if reached < rise else (low, middle)
    return at(middle)
