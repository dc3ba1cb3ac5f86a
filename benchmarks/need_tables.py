"""Tables of benchmarks/need.py: gains where the truth is known, power, planted needs, other fitters, text."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

import rnndiag
from benchmarks.need_cases import (
    Batch,
    Case,
    adding,
    autoregressive,
    copy,
    cue,
    delayed,
    held_out,
    loss_fn,
    measured,
    noise,
    sine_of_now,
    trained,
)
from benchmarks.need_programs import CharNet, library_text, pieces
from rnndiag.recorder.measures.measure import Subject
from rnndiag.recorder.measures.need_screen import need_screen
from rnndiag.recorder.need import skips
from rnndiag.recorder.need.skips import Outputs
from rnndiag.stats.need import ScreenCurve, screens_in
from rnndiag.store.recording import Recording


def pooled_screen(model: nn.Module, batches: Sequence[Batch]) -> ScreenCurve | None:
    """The recorded screen of a net, pooled over batches as over recordings of a fit; None: too few rows a batch."""
    recordings = []
    for step, batch in enumerate(batches):
        with rnndiag.probe(model) as seen:
            loss_fn(model, batch).backward()
        subject = Subject(seen.layer_runs)
        recordings.append(Recording(step, measurements=tuple(need_screen(subject))))
    return next(iter(screens_in(recordings)), None)


@dataclass(frozen=True)
class Known:
    """A case, the kind of its net, and what is known of its need."""

    case: Case
    kind: str
    truth: str


COPY = Case("copy 6, window 3", copy(6), 2, 2, 300, 3, 3)
XOR = Case("xor 0 and 6, window 3", copy(6, product=True), 2, 2, 300, 3, 3)
RARE = Case("rare 3 %, lag 6, window 3", copy(6, 2, 0.03), 2, 2, 300, 3, 3)
CUE = Case("cue 20, many-to-one", cue(21), 3, 3, 40, 4, 4, last=True, batches=16)
ADDING = Case("adding 20, plateau", adding(), 2, 1, 100, None, 4, last=True, batches=16)
AR_FAR = Case("AR(8) .4, window 3", autoregressive({8: 0.4}), 1, 1, 500, 3, 3)
AR_SMALL = Case("AR(8) .1, window 3", autoregressive({8: 0.1}), 1, 1, 500, 3, 3)

KNOWN = (
    Known(COPY, "gru", "ln 2 at 6"),
    Known(COPY, "lstm", "ln 2 at 6"),
    Known(replace(COPY, name="copy 6, window 3, two layers", layers=2), "gru", "ln 2 at 6"),
    Known(replace(COPY, name="copy 6, 4 batches of 8", draw=copy(6, batch=8), batches=4), "gru", "ln 2 at 6"),
    Known(XOR, "gru", "ln 2 at 6, a product"),
    Known(Case("copy 4, solved", copy(4), 2, 2, 900, None, 6), "gru", "none"),
    Known(Case("copy 4, solved, weight decay 1", copy(4), 2, 2, 900, None, 6, decay=1.0), "gru", "none"),
    Known(Case("copy 4 after 60 steps", copy(4), 2, 2, 60, None, 6), "gru", "at 4, within"),
    Known(ADDING, "gru", "0.17 before 20"),
    Known(CUE, "rnn", "ln 3 at 20"),
    Known(RARE, "gru", "0.13 at 6"),
    Known(Case("smear: AR(.9) inputs, lag 10", delayed(10, rho=0.9), 1, 1, 300, 3, 3), "gru", "at 10"),
    Known(Case("AR(1) .4, window 3", autoregressive({1: 0.4}), 1, 1, 300, 3, 3), "gru", "none"),
    Known(Case("noise, squared error", noise(None), 2, 1, 100, None, 4), "gru", "none"),
    Known(Case("sine of the present", sine_of_now(0.0), 1, 1, 300, None, 3), "gru", "none"),
)  # fmt: skip


def truth(quick: bool) -> None:
    """What the present and the lags gain where the need is known."""
    print(
        "| case | net | truth | screen points at | L | R | present | within | beyond | groups | lead |\n"
        "|---|---|---|---|---|---|---|---|---|---|---|"
    )
    for known in KNOWN[:1] if quick else KNOWN:
        case = known.case
        model = trained(case, known.kind, 0)
        need = measured(case, known.kind, 0, model)
        screen = pooled_screen(model, held_out(case, 0)[:8])
        peak = None if screen is None else screen.peak
        groups = ", ".join(
            f"{g.low}-{g.high} {g.gain:.3f}" for g in need.groups if g.gain > need.gate
        )
        half = (need.further.upper - need.further.lower) / 2
        print(
            f"| {case.name} | {known.kind} | {known.truth} | {peak[0] + ' ' + str(peak[1]) if peak else '-'} "
            f"| {need.loss:.4f} | {need.scale:.3f} | {need.present.gain:.4f} | {need.within.gain:.4f} "
            f"| {need.further.gain:.4f} ± {half:.4f} | {groups or '-'} | {need.lead} |",
            flush=True,
        )


SIZES = (32, 64, 128, 256)


def power(quick: bool) -> None:
    """How often a known need is found, over the number of sequences: by the screen, and by the fitted skips."""
    draws = 1 if quick else 3
    print(f"Screen / skips, {draws} draws each; below 32 sequences memory_need refuses.\n")
    print("| need | " + " | ".join(map(str, SIZES)) + " |\n|---" + "|---" * len(SIZES) + "|")
    for case in (COPY,) if quick else (COPY, CUE, RARE, AR_FAR, ADDING, AR_SMALL):
        model = trained(case, "gru", 0)
        cells = []
        for size in (64,) if quick else SIZES:
            found = [0, 0]
            for seed in range(draws):
                batches = cut(held_out(replace(case, batches=16), 100 + seed), size)
                screen = pooled_screen(model, batches)
                found[0] += screen is not None and screen.peak is not None
                need = rnndiag.memory_need(model, batches, loss_fn, beyond=case.beyond, seed=seed)
                found[1] += need.further.significant and need.rows >= 64
            cells.append(f"{found[0] / draws:.2g} / {found[1] / draws:.2g}")
        print(f"| {case.name} | {' | '.join(cells)} |", flush=True)


def cut(batches: Iterable[Batch], sequences: int) -> list[Batch]:
    """The first sequences of some batches, in batches of at least 4 and at most 32."""
    size = min(32, sequences // 4)
    pieces = [
        {key: value[start : start + size] for key, value in batch.items()}
        for batch in batches
        for start in range(0, 32, size)
        if start + size <= 32
    ]
    return pieces[: sequences // size]


def control(quick: bool) -> None:
    """The smallest share of R at which a planted need is found where there is no other."""
    cases = (
        Case("noise, squared error", noise(None), 2, 1, 100, None, 4),
        Case("noise, cross-entropy", noise(2), 2, 2, 60, None, 4),
        Case("AR(1) .4, whole", autoregressive({1: 0.4}), 1, 1, 400, None, 6),
    )
    seeds = 1 if quick else 6
    print("| net | 3 % found | 1 % found |\n|---|---|---|")
    for case in cases[:1] if quick else cases:
        floors = [measured(case, "gru", seed).floor for seed in range(seeds)]
        three, one = (sum(floor <= share for floor in floors) for share in (0.03, 0.01))
        print(f"| {case.name} | {three} of {seeds} | {one} of {seeds} |", flush=True)


def fitters(quick: bool) -> None:
    """Gain of all lags and plain steps by other rounds of boosting, and by Adam on the same features."""
    print("| task | ridge x1 | ridge x2 | ridge x4 | Adam 1e-3 | Adam 1e-2 | Adam 1e-1 |")
    print("|---|---|---|---|---|---|---|")
    for case in (COPY,) if quick else (COPY, AR_FAR, RARE, CUE, ADDING):
        model = trained(case, "gru", 0)
        cells = []
        for rounds in (2,) if quick else (1, 2, 4):
            with boosting(rounds):
                cells.append(_gain(measured(replace(case, beyond=1), "gru", 0, model)))
        for rate in (1e-2,) if quick else (1e-3, 1e-2, 1e-1):
            with fitted_by_adam(rate):
                cells.append(_gain(measured(replace(case, beyond=1), "gru", 0, model)))
        print(f"| {case.name} | {' | '.join(cells)} |", flush=True)


def _gain(need: rnndiag.MemoryNeed) -> str:
    return f"{need.further.gain:.4f} ({need.plain_steps:.0f})"


@contextmanager
def boosting(rounds: int) -> Any:
    """Another number of boosting rounds a level."""
    before, skips.ROUNDS = skips.ROUNDS, rounds
    try:
        yield
    finally:
        skips.ROUNDS = before


@contextmanager
def fitted_by_adam(rate: float, steps: int = 150, every: int = 10) -> Any:
    """Levels whose coefficients Adam fits from zero, stopped by the validation loss."""
    original = skips.SkipFitter.level

    def level(fitter: Any, outputs: Outputs, design: Any, blocks: Any) -> Outputs:
        if not blocks:
            return outputs
        fitter.extend(design, blocks)
        features = [
            torch.cat(
                [fitter.features(n, block, slice(None), design.donor) for block in design.blocks], 1
            )
            for n in range(3)
        ]
        width = outputs.by_part[0][0].shape[-1]
        weights = torch.zeros(features[0].shape[1], width, dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.Adam([weights], rate)

        def at(number: int, w: Tensor) -> list[Tensor]:
            part = fitter.parts[number]
            rows = part.of_samples(features[number] @ w)
            return [
                y + _placed(sample, r)
                for sample, y, r in zip(part.samples, outputs.by_part[number], rows, strict=True)
            ]

        lowest, best = sum(fitter.losses(outputs, 1)), None
        for step in range(steps):
            k = step % len(fitter.parts[0].samples)
            with torch.enable_grad():
                sample = fitter.parts[0].samples[k]
                loss = fitter.loss._loss(sample, at(0, weights)[k])
                (gradient,) = torch.autograd.grad(loss, weights)
            fitter.loss.plain_steps += 1
            weights.grad = gradient
            optimizer.step()
            if step % every == every - 1:
                tried = at(1, weights.detach())
                now = sum(
                    fitter.loss.value(s, y)
                    for s, y in zip(fitter.parts[1].samples, tried, strict=True)
                )
                if now < lowest:
                    lowest, best = now, weights.detach().clone()
        if best is None:
            return outputs
        return Outputs(tuple(at(number, best) for number in range(3)))

    skips.SkipFitter.level = level  # type: ignore[method-assign]
    try:
        yield
    finally:
        skips.SkipFitter.level = original  # type: ignore[method-assign]


def _placed(sample: Any, rows: Tensor) -> Tensor:
    change = torch.zeros_like(sample.outputs)
    return change.masked_scatter(sample.active.unsqueeze(-1), rows.to(change.dtype))


def bytes_of_python(quick: bool) -> None:
    """The promise beyond a window of 2, 8 and 64 on text, and what training on with 64 brought over the same window."""
    text = library_text()
    split = len(text) * 9 // 10
    train_text, test_text = text[:split], text[split:]
    steps, more = (60, 30) if quick else (500, 300)
    print("| window | L | present | beyond the window | lead | realised by the window 64 | CPU s |")
    print("|---|---|---|---|---|---|---|")
    for window in (2,) if quick else (2, 8, 64):

        def fit(model: CharNet, count: int, size: int, seed: int) -> None:
            generator = torch.Generator().manual_seed(seed)
            optimizer = torch.optim.Adam(model.parameters(), 3e-3)
            for _ in range(count):
                loss = model.run(pieces(train_text, generator), size)
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()

        torch.manual_seed(0)
        model = CharNet(48)
        fit(model, steps, window, 0)
        generator = torch.Generator().manual_seed(5)
        batches = [pieces(test_text, generator) for _ in range(4 if quick else 24)]
        start = time.process_time()
        need = rnndiag.memory_need(
            model, batches, lambda net, batch: net.run(batch, None), beyond=window, max_lag=72
        )
        seconds = time.process_time() - start
        losses = []
        for size in (64, window):
            net = CharNet(48)
            net.load_state_dict(model.state_dict())
            fit(net, more, size, 1)
            with torch.no_grad():
                losses.append(sum(float(net.run(batch, None)) for batch in batches) / len(batches))
        print(
            f"| {window} | {need.loss:.3f} | {need.present.gain:.4f} | {need.further.gain:.4f} "
            f"({need.further.lower:.4f} to {need.further.upper:.4f}) | {need.lead} | {losses[1] - losses[0]:.4f} "
            f"| {seconds:.0f} |",
            flush=True,
        )
