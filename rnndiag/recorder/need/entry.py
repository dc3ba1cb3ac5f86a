"""`rnndiag.memory_need`: does the task need more memory than the gradient reaches?"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import nn

from rnndiag.errors import BadArgument, require_whole
from rnndiag.recorder.need.batches import Parts, divide, overlap_of, read_samples
from rnndiag.recorder.need.chosen_layer import chosen_layer
from rnndiag.recorder.need.features import Basis, Rows
from rnndiag.recorder.need.grid import lag_groups
from rnndiag.recorder.need.layer_output import as_parts
from rnndiag.recorder.need.limits import GradientLimits, gradient_limits
from rnndiag.recorder.need.need_curve import need_curve, smallest_found
from rnndiag.recorder.need.output_loss import (
    LossFn,
    OutputLoss,
    Sample,
    loss_of_training_step,
)
from rnndiag.recorder.need.skips import Part, SkipFitter
from rnndiag.recorder.need.use import SHARE_OF_PEAK, MemoryUse, burn_in
from rnndiag.recorder.preflight.untouched import untouched
from rnndiag.stats.need import Gain, LagGain, MemoryNeed, Use
from rnndiag.stats.need.gains import interval
from rnndiag.stats.need.numbers import Limit

USE_BATCHES = 4
LEAST_USE = 0.01
"""A peak of USE below this share of the loss means that the net uses no memory."""
EVERY_LAG = 64
"""Up to this length all lags are tested; of longer sequences four windows, and at least half of the length."""

Progress = Callable[[str, float], None]


def memory_need(
    model: nn.Module,
    batches: Iterable[Any],
    loss_fn: LossFn | None = None,
    layer: str | None = None,
    beyond: int | None = None,
    max_lag: int | None = None,
    seed: int = 0,
    *,
    progress: Progress | None = None,
) -> MemoryNeed:
    """Test whether the loss asks for inputs further back than the gradient reaches.

    Three curves over lag: USE (how many of the last inputs the net uses), NEED (how far the loss falls if the
    outputs of the layer are given a function of past inputs, on sequences which that function was not fitted to) and
    the reach. The model runs in eval mode and is left as it was.

    Args:
        model: A trained model with an nn.RNN, nn.LSTM or nn.GRU, or a loop over one of their cells.
        batches: What the training step takes; validation batches, as memorised ones hide a need. 12 to 24 batches with
            384 sequences are read (512 where the loss reads one output a sequence).
        loss_fn: `loss_fn(model, batch)` returns the scalar loss, a sum or mean over sequences. None: the model's
            own `training_step(batch, 0)`, or `tbptt_step(batch, None)` of a `TruncatedBPTT`.
        layer: Name of the recurrent layer whose outputs are tested. Default: the last that runs.
        beyond: Window, sequence length or reach to look beyond. Default: the window at which loss_fn detaches
            the state or that a `TruncatedBPTT` has, else the reach of the gradient on the first batch.
        max_lag: Longest lag. Default: all that the sequences hold, up to 64; of longer ones 4 * beyond and at least
            half of the sequence.
        seed: The same call with the same seed gives the same answer.
        progress: Called with the name of the stage and the share that is done.

    Returns:
        The verdict (`lead`, `sentence`) and the numbers that it rests on.

    Raises:
        NotSupported: No layer whose outputs could be replaced, or its calls form no single sequence.
        BadArgument: An argument has an invalid value.

    Example:
        >>> need = rnndiag.memory_need(model, val_loader, loss_fn, beyond=20)
        >>> print(need.sentence)
    """
    _check_arguments(model, batches, beyond, max_lag)
    step = loss_of_training_step(model) if loss_fn is None else loss_fn
    batches = iter(batches)
    first = next(batches, None)
    if first is None:
        raise BadArgument("memory_need was given no batch.", "Pass an iterable of batches.")
    with (
        warnings.catch_warnings(),
        untouched(model),
        _with_gradients(model),
        # cuDNN refuses the backward pass of a recurrent layer in eval mode
        torch.backends.cudnn.flags(enabled=False),
    ):
        warnings.simplefilter("ignore")
        model.eval()
        _mute_logging(model)
        torch.manual_seed(seed)
        target, later = chosen_layer(model, step, first, layer)
        limits = gradient_limits(model, step, first, target.name)
        if loss_fn is None and hasattr(model, "tbptt_step"):
            mixin: Any = model
            # the whole batch ran as one chunk, so that no detached state showed the window
            limits = replace(limits, window=mixin.tbptt_window or mixin.tbptt_k1)
        loss = OutputLoss(model, step, target, seed)
        samples = read_samples(loss, chain([first], batches))
        return _measured(
            loss, samples, limits, beyond, max_lag, later, progress or (lambda _stage, _share: None)
        )


def _measured(
    loss: OutputLoss,
    samples: list[Sample],
    limits: GradientLimits,
    beyond: int | None,
    max_lag: int | None,
    later: tuple[str, ...],
    progress: Progress,
) -> MemoryNeed:
    """Measure the three curves on the samples."""
    longest = max(int(s.active.any(0).nonzero().max()) for s in samples)
    beyond, limit = _limit(beyond, limits, longest)
    max_lag = _max_lag(max_lag, samples, longest, beyond)
    block = max(overlap_of(sample.seen.inputs) for sample in samples[:2])
    progress("use", 0.0)
    use, used_memory = _use(loss, samples)
    known = MemoryNeed(
        layer=loss.layer.name,
        loss=_mean_loss(samples),
        groups=(),
        present=Gain(0.0, 0.0, 0.0),
        present_p=1.0,
        within=(nothing := LagGain(0.0, 0.0, 0.0, 1.0, 1.0)),
        further=nothing,
        use=use,
        used_memory=used_memory,
        burn_in=burn_in(loss, samples[:USE_BATCHES]),
        floor=math.nan,
        beyond=beyond,
        limit=limit,
        max_lag=max_lag,
        sequences=0,
        n_sequences=sum(sample.batch_size for sample in samples),
        rows=0,
        reach=limits.reach,
        notes=_notes(loss, samples[0], later, block),
    )
    parts = divide(samples, loss.seed, block)
    if all(parts):
        known = replace(known, autocorrelation=_autocorrelation(samples))
        known = _with_gains(known, loss, parts, block, progress)
        progress("done", 1.0)
    return replace(known, plain_steps=loss.plain_steps)


def _with_gains(
    known: MemoryNeed,
    loss: OutputLoss,
    parts: Parts,
    block: int,
    progress: Progress,
) -> MemoryNeed:
    """The measurement with NEED: what past inputs gain by lag on the test part, and what could have been found."""
    progress("skips", 0.2)
    basis = Basis.of(parts[0])
    fit, validation, test = (Part(part, Rows(basis, part)) for part in parts)
    fitter = SkipFitter(loss, fit, validation, test, known.scale)
    groups = _groups(known.max_lag, known.beyond, known.reach)
    curve = need_curve(fitter, groups, block)
    further = [group[0] >= known.beyond for group in groups]
    present, present_p = curve.gains.of_present()
    known = replace(
        known,
        loss=_mean_loss(parts[2]),
        present=present,
        present_p=present_p,
        within=curve.gains.of_lags([not one for one in further]),
        further=curve.gains.of_lags(further),
        sequences=curve.gains.units,
        rows=len(fit.rows),
        peak_lag=curve.peak_lag,
        gap=curve.gap,
    )
    passed = [(known.further if one else known.within).passes(known.gate) for one in further]
    known = replace(known, groups=curve.gains.by_group(groups, passed, known.scale))
    if known.lead not in ("solved", "needed_beyond"):
        progress("positive control", 0.8)
        floor = smallest_found(fitter, curve.base, groups, known.beyond, known.scale)
        known = replace(known, floor=floor)
    return known


def _limit(beyond: int | None, limits: GradientLimits, longest: int) -> tuple[int, Limit]:
    if beyond is not None:
        return beyond, "given"
    if limits.window is not None:
        return limits.window, "window"
    if math.isfinite(limits.reach):
        return max(1, math.ceil(limits.reach)), "reach"
    # the credit does not fall within the sequence: it reaches all of it
    return longest + 1, "reach"


def _max_lag(asked: int | None, samples: Sequence[Sample], longest: int, beyond: int) -> int:
    one_output = all(int(s.active.sum()) <= 2 * s.batch_size for s in samples)
    default = longest
    if longest > EVERY_LAG and not one_output:
        default = max(4 * beyond, (longest + 1) // 2)
    return min(asked or default, longest)


def _groups(max_lag: int, beyond: int, reach: float) -> list[range]:
    cuts = [beyond]
    if math.isfinite(reach):
        cuts.append(math.ceil(reach))
    return lag_groups(max_lag, cuts) if max_lag else []


def _mean_loss(samples: Sequence[Sample]) -> float:
    return float(np.average([s.loss for s in samples], weights=[len(s.sequences) for s in samples]))


def _use(loss: OutputLoss, samples: Sequence[Sample]) -> tuple[tuple[Use, ...], int | None]:
    """USE by number of inputs, and the used memory; None if the rise is not significant."""
    measured = MemoryUse(loss, samples[:USE_BATCHES], loss.seed)
    measured.search()
    points = [Use(rise.inputs, *interval(rise.per_sequence.numpy())) for rise in measured.curve()]
    peak = max(points, key=lambda point: point.rise)
    significant = peak.lower > 0 and peak.rise >= LEAST_USE * abs(_mean_loss(samples))
    if not significant:
        return tuple(points), None
    return tuple(points), next(p.inputs for p in points if p.rise <= SHARE_OF_PEAK * peak.rise)


def _autocorrelation(samples: Sequence[Sample]) -> float:
    """1 / (1 - rho) of the inputs, where rho is the correlation of neighbouring steps over all components."""
    x = samples[0].seen.inputs.double()
    x = x - x.mean((0, 1))
    here, next_ = x[:, :-1], x[:, 1:]
    size = float((here.square().sum() * next_.square().sum()).sqrt())
    rho = float((here * next_).sum()) / size if size > 0 else 0.0
    return 1 / (1 - rho) if rho < 1 else math.inf


def _notes(loss: OutputLoss, sample: Sample, later: tuple[str, ...], block: int) -> tuple[str, ...]:
    notes = []
    if any(bool(part.any()) for part in as_parts(sample.seen.calls[0].state) if part is not None):
        notes.append(
            f"{loss.layer.name} starts from a state that it is given: what lies before its first step was not tested."
        )
    if later:
        notes.append(
            f"{', '.join(later)} run after {loss.layer.name} and may carry its outputs on: lags are 'at least' so long."
        )
    if block > 1:
        notes.append(
            f"Consecutive sequences are overlapping windows of one series: {block} of them count as one."
        )
    return tuple(notes)


def _check_arguments(model: Any, batches: Any, beyond: Any, max_lag: Any) -> None:
    for name, value in (("beyond", beyond), ("max_lag", max_lag)):
        if value is not None:
            require_whole(name, value)
    if not isinstance(model, nn.Module):
        raise BadArgument(f"The model is a {type(model).__name__}.", "Give an nn.Module.")
    if not isinstance(batches, Iterable):
        raise BadArgument(
            f"batches is a {type(batches).__name__}.", "Give an iterable of batches, or a loader."
        )


@contextmanager
def _with_gradients(model: nn.Module) -> Iterator[None]:
    """Let a fully frozen model require gradients meanwhile: its graph shows the window in use."""
    parameters = [p for p in model.parameters() if p.is_floating_point()]
    frozen = not any(p.requires_grad for p in parameters)
    for parameter in parameters if frozen else ():
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter in parameters if frozen else ():
            parameter.requires_grad_(False)


def _mute_logging(model: nn.Module) -> None:
    """Disable `log` of a LightningModule, which raises outside of a loop. `untouched` restores it."""
    for name in ("log", "log_dict"):
        if hasattr(model, name):
            setattr(model, name, lambda *_args, **_kwargs: None)
