"""The recorded screen: U of a plain float64 computation, what it points at, and when it is left out."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from need.shift_register import ShiftRegister, copy_batches, cross_entropy, noise_batches
from torch import Tensor, nn

import rnndiag
from rnndiag.recorder.faults import Faults
from rnndiag.recorder.measures import Extent, Subject, take
from rnndiag.recorder.measures.need_screen import screened_lags
from rnndiag.recorder.need.chosen_layer import chosen_layer
from rnndiag.recorder.need.features import BILINEAR, LINEAR, Basis, Block, Rows
from rnndiag.recorder.need.output_loss import OutputLoss
from rnndiag.recorder.need.screen import Screen
from rnndiag.stats.need import ScreenCurve, screens_in
from rnndiag.store.measurement import Measurement
from rnndiag.store.recording import Recording

Array = np.ndarray[Any, np.dtype[np.float64]]


def screened(model: nn.Module, batch: Any, **extent: Any) -> Recording:
    """One backward pass and its screen."""
    with rnndiag.probe(model) as seen:
        cross_entropy(model, batch).backward()
    subject = Subject(seen.layer_runs, extent=Extent(**extent))
    taken = take(subject, ["need_screen"], Faults(strict=True))
    return Recording(0, measurements=tuple(taken.measurements), notes=taken.notes)


def whitened(values: Array, ridge: float, most: int = 10**6) -> Array:
    """values @ V (w + ridge mean w)^-1/2, from the singular values of the rows themselves."""
    _, s, v = np.linalg.svd(values, full_matrices=False)
    w = s**2
    kept = w > w.max() * 1e-5
    w, v = w[kept][:most], v[kept][:most]
    return np.asarray((values @ v.T) / np.sqrt(w + ridge * w.mean()))


@pytest.mark.parametrize("block", [Block(LINEAR, 4, 4), Block(BILINEAR, 2, 2)])
def test_screen_is_the_debiased_sum_of_squared_correlations(block: Block) -> None:
    model = ShiftRegister(2).eval()
    layer, _ = chosen_layer(model, cross_entropy, copy_batches(4)[0], None)
    loss = OutputLoss(model, cross_entropy, layer, 0)
    samples = [loss.sample(b, n) for n, b in enumerate(copy_batches(4, 2, 9, 16))]
    rows = Rows(Basis.of(samples), samples)
    errors = torch.cat([sample.gradient[sample.active] for sample in samples]).double()
    score = Screen(rows, errors).score(block)

    e, present, f = (
        part.numpy() for part in (errors, rows.present()[:, : len(rows) // 10], rows.lagged(block))
    )
    u, s, _ = np.linalg.svd(present, full_matrices=False)
    kept = s**2 > 1e-5 * s[0] ** 2
    shrunk = s[kept] / np.sqrt(s[kept] ** 2 + 1e-6 * (s[kept] ** 2).mean())
    q = u[:, kept] * shrunk
    h = np.minimum((q**2).sum(1), 0.9)
    white_e = whitened(e - q @ (q.T @ e), 1e-2, 8) / np.sqrt(1 - h)[:, None]
    left = f - q @ (q.T @ f)
    left = left[:, (left**2).sum(0) > 1e-9 * len(left)]
    white_f = whitened(left, 1e-2)
    owner = rows.owner.numpy()
    total, square, overlap = 0.0, 0.0, 0.0
    for a in range(rows.n_sequences):
        s_a = white_f[owner == a].T @ white_e[owner == a]
        overlap += float(((q[owner == a].T @ white_f[owner == a]) ** 2).sum())
        for b in range(rows.n_sequences):
            if a != b:
                k = float((s_a * (white_f[owner == b].T @ white_e[owner == b])).sum())
                total, square = total + k, square + k**2
    noise = float((white_e**2).sum()) / len(e)
    shrink = float((1 - h).mean())
    assert score is not None
    assert score.explained == pytest.approx((total - overlap * noise) * shrink, rel=1e-6, abs=1e-9)
    assert score.deviation == pytest.approx(math.sqrt(2 * square) * shrink, rel=1e-6)


def test_screen_of_recordings_points_at_the_lag_of_the_task() -> None:
    model = ShiftRegister(3)
    recordings = [screened(model, batch) for batch in copy_batches(6, 4)]
    (curve,) = screens_in(recordings)
    assert (curve.layer, curve.recordings) == ("rnn.l0", 4)
    assert curve.peak == ("linear", 6)
    assert "6 steps back" in curve.sentence
    assert "no verdict" in curve.sentence
    explained = curve.explained[0, curve.lags.index(6)]
    assert explained == pytest.approx(1.0, abs=0.15)


def test_screen_of_noise_points_at_nothing() -> None:
    recordings = [screened(ShiftRegister(3), batch) for batch in noise_batches(6)]
    (curve,) = screens_in(recordings)
    assert curve.peak is None
    assert "proves nothing" in curve.sentence


def test_recordings_are_pooled_by_sums_of_u_and_of_variances() -> None:
    def one(step: int, u: float, deviation: float) -> Recording:
        values = np.full((3, 2, 2), np.nan)
        values[0, 1] = u, deviation
        labels = {"screen_lag": ("1", "4")}
        return Recording(step, measurements=(Measurement.of("need_screen", values, "l0", labels),))

    (curve,) = screens_in([one(0, 0.5, 0.1), one(1, 0.1, 0.3)])
    assert isinstance(curve, ScreenCurve)
    assert curve.lags == (4,)
    assert curve.z[0, 0] == pytest.approx(0.6 / math.sqrt(0.1**2 + 0.3**2), rel=1e-6)
    assert curve.explained[0, 0] == pytest.approx(0.3)
    assert curve.p[0, 0] == pytest.approx(0.5 * math.erfc(curve.z[0, 0] / math.sqrt(2)))
    assert np.isnan(curve.z[1, 0])


def test_stack_is_screened_from_its_lowest_input_to_its_highest_output() -> None:
    class Stack(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.GRU(2, 6, 2, batch_first=True)
            self.head = nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.head(self.rnn(x)[0])
            return logits

    torch.manual_seed(0)
    recording = screened(Stack(), copy_batches(5, 1)[0])
    assert recording.layers == ("rnn.l1",)


def test_lags_are_every_one_and_then_two_an_octave() -> None:
    assert screened_lags(5) == [1, 2, 3, 4]
    assert screened_lags(40) == [1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 24, 32]


def test_what_is_not_screened_is_said() -> None:
    few = screened(ShiftRegister(2), copy_batches(2, 1, sequences=3)[0])
    assert "4 sequences" in few.notes["not_measured"]["need_screen of rnn.l0"]
    short = screened(ShiftRegister(2), copy_batches(2, 1)[0], thrifty=True)
    assert "budget" in short.notes["not_measured"]["need_screen"]
    masked = copy_batches(2, 1)[0]
    masked["y"][:, :-1] = -100
    masked["y"][10:] = -100
    assert (
        "fewer than"
        in screened(ShiftRegister(2), masked).notes["not_measured"]["need_screen of rnn.l0"]
    )


class Reverses(nn.Module):
    """An encoder of 4 words, whose state starts a decoder that reads 5."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.GRU(4, 8), nn.GRU(5, 8)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.decoder(torch.cat([x, x[..., :1]], -1), self.encoder(x)[1])[0]
        return out


def test_encoder_and_decoder_of_other_words_are_screened_apart() -> None:
    model, x = Reverses(), torch.randn(16, 8, 4, generator=torch.Generator().manual_seed(0))
    with rnndiag.probe(model) as seen:
        model(x).square().mean().backward()
    subject = Subject(seen.layer_runs, extent=Extent())
    taken = take(subject, ["need_screen"], Faults(strict=True))
    assert "decoder.l0" in {one.layer for one in taken.measurements}
