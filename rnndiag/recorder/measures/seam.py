"""The credit lost by the user's own truncation: the losses of a chunk followed into the chunks before it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from rnndiag.engine.layer_run import LayerRun
from rnndiag.engine.truncation.sweep.parameter_layout import ALL
from rnndiag.engine.truncation.sweep.seam_sweep import Seam, seam_sweep
from rnndiag.recorder.measures.pooling import array
from rnndiag.store.measurement import Measurement

BUDGET = 3.0
"""Cost limit of the sweep, in plain training steps of the sampled sequences over all chunks together."""


def seam(
    name: str,
    earlier: Sequence[tuple[LayerRun, ...]],
    runs: tuple[LayerRun, ...],
    samples: int | None = None,
    seed: int = 0,
) -> tuple[list[Measurement], str]:
    """All quantities of one recurrence over `samples` sequences (None: all), and the findings in words."""
    draw = torch.Generator().manual_seed(seed)
    one = len(runs) == 1
    found = seam_sweep(
        [chunk[0] if one else chunk for chunk in earlier],
        runs[0] if one else runs,
        budget=BUDGET,
        samples=samples if samples is None or samples < runs[0].B else None,
        generator=draw,
    )
    sentences = [found.sentence, *found.notes]
    if found.sweep.sampling.sampled or not found.sweep.sampling.complete:
        sentences.append(found.sweep.sampling.sentence)
    return list(_measurements(found, name)), " ".join(sentences)


def _measurements(found: Seam, name: str) -> Iterator[Measurement]:
    sweep = found.sweep
    yield Measurement.of("seam_credit", array(found.log_profile), name)
    yield Measurement.of("seam_steps", np.array([found.own_steps, found.kept_steps]), name)
    numbers = {
        "seam_share": found.credit_beyond,
        "seam_bias": found.gradient_beyond,
        "seam_cosine": found.cosine,
        "seam_mean_square": found.mean_square,
        "seam_mean_square_error": found.mean_square_error,
        "seam_whole_mean_square": found.gradient_mean_square,
        "seam_whole_mean_square_error": found.gradient_mean_square_error,
        "seam_gradient_mean_square": sweep.gradient_mean_square,
    }
    for quantity, value in numbers.items():
        yield Measurement.of(quantity, np.asarray(value), name)
    measured = [0, *sweep.sampling.windows]
    taus = {"lag": tuple(map(str, measured))}
    bias = sweep.tail_norms[ALL] / sweep.full_gradient_norm
    for quantity, values in (
        ("seam_window_bias", bias),
        ("seam_window_cosine", sweep.window_cosine),
        ("seam_tail_mean_square", sweep.tail_mean_square),
        ("seam_tail_mean_square_error", sweep.tail_mean_square_error),
    ):
        yield Measurement.of(quantity, array(values)[measured], name, taus)
