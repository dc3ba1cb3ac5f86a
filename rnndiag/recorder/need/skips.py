"""Fitted skips N2: how far does the loss fall if the outputs are given a function of past inputs?

Skips are added level by level, each starting from the outputs of the one before: functions of the present first, then
of the lags of each group, nearest first. A level is two rounds of boosting: the natural-gradient direction is fitted by
ridge regression on the features of all levels so far, with ridge and step size chosen by the loss of validation
sequences. The gain of a level is measured on test sequences used for neither. A level that does not lower the
validation loss is dropped, with a gain of exactly 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain

import torch
from torch import Tensor

from rnndiag.recorder.need.features import Block, Rows
from rnndiag.recorder.need.loss_split import LEAST_SPLIT, split_loss
from rnndiag.recorder.need.output_loss import OutputLoss, Sample
from rnndiag.recorder.need.screen import inverse_root

ROUNDS = 2
RIDGES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
STEPS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
"""Step sizes tried, in units of sd(outputs) / sd(direction); ..."""
GROWTH, MOST_GROWTH = 3.0, 30
"""... if the largest is the best, larger ones are tried as long as the loss falls: sd(outputs) can be too small."""
REFINEMENTS = (1.7, 0.6)
PRESENT_SHARE = 0.3
"""Most columns for functions of the present, as a share of the rows."""
MOST_ROWS = 16384
"""Most rows used by a ridge regression; if there are more, a random subset of this size."""
PORTION = 8192
"""Number of rows whose features are held in memory at a time."""
HEAVY, CLIP = 8.0, 5.0
"""If the norms of the errors have a larger normalized fourth moment than HEAVY, fitting is also tried with errors
clipped at CLIP times their median norm; the validation loss decides."""
LEAST_FALL = 3e-4
"""A round must lower the validation loss by this share of the scale: a thirtieth of what a verdict needs."""


@dataclass
class Part:
    """The samples for one purpose (fit, validation or test) and their rows."""

    samples: list[Sample]
    rows: Rows

    def of_samples(self, values: Tensor) -> list[Tensor]:
        """Values at all rows, split by sample."""
        return list(values.split(self.rows.sizes))


@dataclass
class Outputs:
    """The outputs of all samples after some level, by part."""

    by_part: tuple[list[Tensor], ...]
    errors: dict[int, list[Tensor]] = field(default_factory=dict)
    """Gradients at the active rows by part, computed on first use."""
    losses: dict[int, list[float]] = field(default_factory=dict)


@dataclass
class Design:
    """Features of the levels so far, as second moments."""

    donor: bool = False
    blocks: list[Block | None] = field(default_factory=list)
    """The block of each group of columns; None: the present."""
    fit: Tensor | None = None
    validation: Tensor | None = None
    """Features of the validation rows used, (rows, columns)."""
    moments: list[Tensor] = field(default_factory=list)


class SkipFitter:
    """Fits levels of skips on `fit`, chooses by `validation`, applies to all three parts.

    Args:
        loss: The loss as a function of the outputs.
        fit: Sequences that directions are fitted to.
        validation: Sequences that ridge and step are chosen by.
        test: Sequences that gains are measured on.
        scale: R, the loss without memory.
    """

    FIT, VALIDATION, TEST = range(3)

    def __init__(
        self, loss: OutputLoss, fit: Part, validation: Part, test: Part, scale: float
    ) -> None:
        self.loss, self.scale = loss, scale
        self.parts = (fit, validation, test)
        generator = torch.Generator().manual_seed(loss.seed)
        device = fit.rows.step.device
        self._chosen = tuple(
            torch.randperm(len(part.rows), generator=generator)[:most].sort().values.to(device)
            for part, most in ((fit, MOST_ROWS), (validation, MOST_ROWS // 2))
        )
        self._most_present = max(2, int(PRESENT_SHARE * len(self._chosen[0])))

    def recorded(self) -> Outputs:
        """The outputs as recorded, without skips."""
        outputs = Outputs(tuple([s.outputs for s in part.samples] for part in self.parts))
        for number, part in enumerate(self.parts):
            outputs.errors[number] = [s.gradient[s.active].double() for s in part.samples]
            outputs.losses[number] = [s.loss for s in part.samples]
        return outputs

    def errors(self, outputs: Outputs, part: int) -> Tensor:
        """e = dL/dY at the rows of a part."""
        if part not in outputs.errors:
            outputs.errors[part] = [
                self.loss.gradient(sample, y)[1][sample.active].double()
                for sample, y in zip(self.parts[part].samples, outputs.by_part[part], strict=True)
            ]
        return torch.cat(outputs.errors[part])

    def losses(self, outputs: Outputs, part: int) -> list[float]:
        """The loss of every sample of a part."""
        if part not in outputs.losses:
            outputs.losses[part] = [
                self.loss.value(sample, y)
                for sample, y in zip(self.parts[part].samples, outputs.by_part[part], strict=True)
            ]
        return outputs.losses[part]

    def level(self, outputs: Outputs, design: Design, blocks: Sequence[Block | None]) -> Outputs:
        """Add the features of `blocks` and boost the outputs; returns the same object if that did not help."""
        if not blocks:
            return outputs
        self.extend(design, blocks)
        factors: dict[float, Tensor] = {}
        for _ in range(ROUNDS):
            boosted = self._round(outputs, design, factors)
            if boosted is None:
                break
            outputs = boosted
        return outputs

    def gains(self, before: Outputs, after: Outputs) -> tuple[Tensor, float]:
        """Decrease of the loss on the test sequences, one value per sequence, and the largest gap of the split.

        Its mean over sequences is the decrease of the loss.
        """
        part = self.parts[self.TEST]
        if before is after:
            return torch.zeros(part.rows.n_sequences, dtype=torch.float64), 0.0
        found, worst = [], 0.0
        ends = zip(self.losses(before, self.TEST), self.losses(after, self.TEST), strict=True)
        for sample, y0, y1, end in zip(
            part.samples, before.by_part[self.TEST], after.by_part[self.TEST], ends, strict=True
        ):
            split = split_loss(self.loss, sample, y0, y1, end, LEAST_SPLIT * self.scale)
            found.append(split.shares.sum(1)[sample.sequences] * sample.batch_size)
            worst = max(worst, split.gap)
        return torch.cat(found).cpu(), worst

    def features(self, part: int, block: Block | None, rows: Tensor | slice, donor: bool) -> Tensor:
        """Columns of one block at some rows of a part."""
        if block is None:
            return self.parts[part].rows.present(rows)[:, : self._most_present]
        return self.parts[part].rows.lagged(block, rows, donor)

    def extend(self, design: Design, blocks: Sequence[Block | None]) -> None:
        """Add features and their second moments to the design; only new rows and columns are computed."""
        moments = []
        for number, old in ((self.FIT, design.fit), (self.VALIDATION, design.validation)):
            rows = self._chosen[number]
            new = torch.cat([self.features(number, b, rows, design.donor) for b in blocks], 1)
            corner = new.T @ new / len(new)
            if old is not None:
                side = old.T @ new / len(new)
                before = design.moments[number]
                corner = torch.cat(
                    [torch.cat([before, side], 1), torch.cat([side.T, corner], 1)], 0
                )
                new = torch.cat([old, new], 1)
            moments.append(corner)
            if number == self.FIT:
                design.fit = new
            else:
                design.validation = new
        design.moments = moments
        design.blocks += blocks

    def _round(
        self, outputs: Outputs, design: Design, factors: dict[float, Tensor]
    ) -> Outputs | None:
        """One boosting round; None where it does not lower the validation loss."""
        errors = self.errors(outputs, self.FIT)
        if not bool((errors != 0).any()):
            return None
        found = [self._boosted(outputs, design, factors, limit) for limit in _clips(errors)]
        kept = [one for one in found if one is not None]
        return min(kept, key=lambda one: sum(one.losses[self.VALIDATION]), default=None)

    def _boosted(
        self, outputs: Outputs, design: Design, factors: dict[float, Tensor], limit: float
    ) -> Outputs | None:
        """The outputs after the best step along the direction fitted to errors clipped at norm `limit`."""
        targets = [_clipped(self.errors(outputs, number), limit) for number in (0, 1)]
        metric = inverse_root(targets[0].T @ targets[0] / len(targets[0]), 1e-2)
        targets = [-t[rows] @ metric for t, rows in zip(targets, self._chosen, strict=True)]
        coefficients = self._ridge(design, factors, *targets)
        if coefficients is None:
            return None
        weights = coefficients @ metric.T
        directions = [self._applied(number, design, weights) for number in range(3)]
        step = self._step(outputs, directions[self.VALIDATION])
        if step is None:
            return None
        size, losses = step
        boosted = Outputs(
            tuple(
                [
                    y + size * sample.placed(change)
                    for sample, y, change in zip(
                        part.samples, ys, part.of_samples(direction), strict=True
                    )
                ]
                for part, ys, direction in zip(self.parts, outputs.by_part, directions, strict=True)
            )
        )
        boosted.losses[self.VALIDATION] = losses
        return boosted

    def _ridge(
        self, design: Design, factors: dict[float, Tensor], target: Tensor, held_out: Tensor
    ) -> Tensor | None:
        """Coefficients of the target on the features, with the ridge that explains most of the validation rows."""
        assert design.fit is not None
        assert design.validation is not None
        moment, moment_held_out = design.moments
        products = design.fit.T @ target / len(target)
        products_held_out = design.validation.T @ held_out / len(held_out)
        total = float(held_out.square().sum()) / len(held_out)
        best, found = 0.0, None
        for ridge in RIDGES:
            if ridge not in factors:
                shifted = moment + ridge * torch.eye(
                    len(moment), dtype=moment.dtype, device=moment.device
                )
                factors[ridge] = torch.linalg.cholesky(shifted)
            a = torch.cholesky_solve(products, factors[ridge])
            fall = 2 * (a * products_held_out).sum() - (a * (moment_held_out @ a)).sum()
            if total > 0 and float(fall) / total > best:
                best, found = float(fall) / total, a
        return found

    def _applied(self, number: int, design: Design, weights: Tensor) -> Tensor:
        """features @ weights at all rows of a part, (rows, H)."""
        n = len(self.parts[number].rows)
        applied = []
        for rows in torch.arange(n, device=weights.device).split(PORTION):
            total, begin = (
                torch.zeros(
                    len(rows), weights.shape[1], dtype=weights.dtype, device=weights.device
                ),
                0,
            )
            for block in design.blocks:
                columns = self.features(number, block, rows, design.donor)
                total += columns @ weights[begin : begin + columns.shape[1]]
                begin += columns.shape[1]
            applied.append(total)
        return torch.cat(applied)

    def _step(self, outputs: Outputs, direction: Tensor) -> tuple[float, list[float]] | None:
        """The step size that lowers the validation loss most, with the losses there; None if none does."""
        part = self.parts[self.VALIDATION]
        ys = outputs.by_part[self.VALIDATION]
        changes = [
            sample.placed(rows)
            for sample, rows in zip(part.samples, part.of_samples(direction), strict=True)
        ]

        def losses(step: float) -> list[float]:
            return [
                self.loss.value(sample, y + step * change)
                for sample, y, change in zip(part.samples, ys, changes, strict=True)
            ]

        spread = float(
            torch.cat([y[s.active] for s, y in zip(part.samples, ys, strict=True)]).double().std()
        )
        # Outputs that never change (dead units) have no scale of their own: activations are of order 1.
        scale = (spread or 1.0) / (float(direction.std()) + 1e-300)
        now = self.losses(outputs, self.VALIDATION)
        weights = [len(sample.sequences) / sample.batch_size for sample in part.samples]
        # In a divided batch only the sample's own sequences change.
        least = LEAST_FALL * self.scale * sum(weights)
        lowest, best, at_best = sum(now), None, []
        larger = (STEPS[-1] * GROWTH**k for k in range(1, MOST_GROWTH))
        for step in chain(STEPS, larger):
            if step > STEPS[-1] and best is None:
                break
            tried = losses(step * scale)
            if sum(tried) < lowest:
                lowest, best, at_best = sum(tried), step * scale, tried
            elif best is not None:
                break
        if best is None or sum(now) - lowest < least / 2:
            return None
        around = best
        for factor in REFINEMENTS:
            tried = losses(around * factor)
            if sum(tried) < lowest:
                lowest, best, at_best = sum(tried), around * factor, tried
        return (best, at_best) if sum(now) - lowest >= least else None


def _clips(errors: Tensor) -> list[float]:
    """Norms at which errors are clipped for fitting: inf, and for heavy-tailed errors a multiple of their median."""
    norms = errors.norm(dim=1)
    square = norms.square().mean()
    heavy = float(norms.pow(4).mean()) > HEAVY * float(square) ** 2
    median = float(norms.median())
    return [math.inf, CLIP * median] if heavy and median > 0 else [math.inf]


def _clipped(errors: Tensor, limit: float) -> Tensor:
    """Rows scaled down to a norm of at most `limit`."""
    if math.isinf(limit):
        return errors
    factor: Tensor = limit / errors.norm(dim=1, keepdim=True).clamp(min=1e-300)
    return errors * factor.clamp(max=1.0)
