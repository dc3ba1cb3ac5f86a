"""The recommendation's sentence: word for word from known numbers, and from runs that hold them."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rnndiag.run.run import Run, open_run
from rnndiag.stats.advice import Advice, InUse, advice, percent
from rnndiag.stats.window import Recommendation
from rnndiag.store.measurement import Measurement
from rnndiag.store.recording import Recording
from rnndiag.store.writer import RunWriter

SYSTEMATIC = Recommendation(64, 0.1, "systematic", extrapolated=False, within=200, bias=0.09)
MINIBATCH = replace(SYSTEMATIC, source="minibatch")
KNOWN = Advice("rnn.l0", SYSTEMATIC, 0.9961, 200, InUse(35, 0.31, 0.24))


def test_the_sentence_in_full() -> None:
    assert KNOWN.sentence == (
        "A window of 64 keeps the gradient within 10 % of full BPTT (cosine 0.996) and holds 32 % of the steps in "
        "memory; your 35 is off by 31 %, of which 24 % is systematic."
    )


def test_what_is_not_resolved_is_said_to_be() -> None:
    found = replace(KNOWN, window=MINIBATCH, in_use=InUse(35, 0.31))
    assert found.sentence == (
        "A window of 64 keeps the gradient within 10 % of full BPTT (cosine 0.996; on minibatches: the systematic "
        "part is not resolved) and holds 32 % of the steps in memory; your 35 is off by 31 % on a minibatch, and how "
        "much of that is systematic is not resolved."
    )


def test_beyond_the_measured_lags_there_is_only_a_marked_bound() -> None:
    found = replace(KNOWN, window=replace(SYSTEMATIC, steps=120.0, extrapolated=True, within=50))
    assert found.sentence.startswith(
        "A window of at most 120 (a bound, extrapolated beyond the 50 steps measured) keeps the gradient within 10 % "
        "of full BPTT and holds at most 60 % of the steps in memory; your 35 is off"
    )


def test_a_window_between_measured_ones_is_about_that() -> None:
    window = replace(SYSTEMATIC, steps=35.0, between=(25, 49))
    used = InUse(20, 0.4, 0.31, about=True)
    assert replace(KNOWN, window=window, cosine=0.995, in_use=used).sentence == (
        "A window of about 35 (between the 25 and 49 that were measured) keeps the gradient within 10 % of full BPTT "
        "(cosine 0.995) and holds 18 % of the steps in memory; your 20 is off by about 40 %, of which 31 % is "
        "systematic."
    )
    beyond = InUse(150, 0.02, 0.01, about=True, measured=97)
    assert replace(KNOWN, in_use=beyond).sentence.endswith(
        "; your 150 is off by 2.0 % (as measured at 97), of which 1.0 % is systematic."
    )


@pytest.mark.parametrize(
    ("window", "words"),
    [
        (
            replace(SYSTEMATIC, steps=0.0),
            "No gradient arrives, so there is nothing to truncate.",
        ),
        (
            replace(SYSTEMATIC, steps=200.0),
            "Nothing shorter than all 200 steps keeps the gradient within 10 %",
        ),
        (
            replace(SYSTEMATIC, steps=math.inf),
            "No window within the 200 steps measured keeps the gradient within 10 %",
        ),
        (
            replace(SYSTEMATIC, steps=math.nan, note="no bias was measured"),
            "No window can be recommended: no bias was",
        ),
    ],
)
def test_where_no_window_will_do(window: Recommendation, words: str) -> None:
    assert replace(KNOWN, window=window).sentence.startswith(words)


def test_across_a_seam_the_steps_that_were_kept_are_named() -> None:
    found = replace(KNOWN, length=105, kept=True, in_use=InUse(35, 0.31, 0.24, chunks=True))
    assert found.sentence == (
        "A window of 64 keeps the gradient within 10 % of BPTT through all 105 steps that were kept (cosine 0.996) "
        "and holds 61 % of those steps in memory; your chunks of 35 are off by 31 %, of which 24 % is systematic."
    )


def test_a_bias_that_is_all_systematic_is_said_to_be() -> None:
    found = replace(KNOWN, in_use=InUse(35, 0.31, 0.312))
    assert found.sentence.endswith("your 35 is off by 31 %, all of it systematic.")
    one = replace(KNOWN, length=1)
    assert one.sentence == "There is one time step, so there is nothing to truncate."


def test_without_a_cut_there_is_nothing_to_be_off_by() -> None:
    assert replace(KNOWN, in_use=InUse(200, 0.0)).sentence.endswith("in memory; you hold all 200.")
    assert replace(KNOWN, in_use=None).sentence.endswith("of the steps in memory.")


def test_shares_keep_two_digits_where_they_are_small() -> None:
    shares = (0.314, 0.0314, 0.00314, 0.0, 12.5, math.inf, math.nan)
    assert list(map(percent, shares)) == [
        "31 %",
        "3.1 %",
        "0.31 %",
        "0 %",
        "1,250 %",
        "an infinite share",
        "an unknown share",
    ]


CHUNK = Recommendation(96, 0.1, "systematic", extrapolated=False, within=200, bias=0.08)


@pytest.mark.parametrize(
    ("chunk", "words"),
    [
        (CHUNK, "Chunks with a carried state need 96 steps for it."),
        (replace(CHUNK, source="minibatch"), "need 96 steps for it (by the minibatch bias)."),
        (replace(CHUNK, steps=200.0), "No chunks shorter than the whole sequence do."),
        (replace(CHUNK, steps=math.inf, within=64), "No chunks of up to 64 steps do that."),
    ],
)
def test_the_chunks_that_would_do_stand_behind_it(chunk: Recommendation, words: str) -> None:
    found = replace(KNOWN, chunk=chunk)
    assert found.text.startswith(KNOWN.sentence)
    assert found.text.endswith(words)
    assert KNOWN.text == KNOWN.sentence
    nothing_shorter = replace(found, window=replace(SYSTEMATIC, steps=200.0))
    assert nothing_shorter.text == nothing_shorter.sentence


WINDOWS = 0.9 ** np.arange(41.0)


def written(
    path: Path, more: Any = (), notes: dict[str, Any] | None = None, used: float = 20
) -> Run:
    """Five recordings of a layer whose windows are off by 0.9^τ, systematically."""
    with RunWriter(path) as writer:
        for step in range(5):
            measured = (
                Measurement.of("window_bias", WINDOWS * 1.1, "a.l0"),
                Measurement.of("window_cosine", 1 - WINDOWS / 2, "a.l0"),
                Measurement.of("tail_mean_square", WINDOWS**2 * (1 + step / 1e3), "a.l0"),
                Measurement.of("gradient_mean_square", 1 + step / 1e3, "a.l0"),
                Measurement.of("valid_samples", np.ones(40), "a.l0"),
                Measurement.of("window_in_use", used),
            )
            writer.append(Recording(step, measurements=(*measured, *more), notes=notes or {}))
    return open_run(path)


def test_from_a_run(tmp_path: Path) -> None:
    found = advice(written(tmp_path / "run"), "a.l0")
    assert found is not None
    assert found.sentence == (
        f"A window of 22 keeps the gradient within 10 % of full BPTT (cosine {1 - 0.9**22 / 2:.3f}) and holds 55 % of "
        f"the steps in memory; your 20 is off by {percent(1.1 * 0.9**20)}, of which {percent(0.9**20)} is systematic."
    )
    assert advice(open_run(tmp_path / "run")) == found


def test_chunks_from_a_run(tmp_path: Path) -> None:
    """Biases of 1/k: 10 % from 10 steps on; no extrapolation where none of them is large enough."""
    for name, most, expected in (("enough", 16, 10.0), ("short", 8, math.inf)):
        sizes = np.array([k for k in (1, 2, 4, 8, 10, 16) if k <= most])
        more = (
            Measurement.of("chunk_size", sizes, "a.l0"),
            Measurement.of("chunk_bias", 1 / sizes, "a.l0"),
            Measurement.of("chunk_cosine", np.ones(len(sizes)), "a.l0"),
            Measurement.of("chunk_mean_square", 0.99 / sizes**2.0, "a.l0"),
        )
        found = advice(written(tmp_path / name, more), "a.l0")
        assert found is not None
        assert found.chunk is not None
        assert (found.chunk.steps, found.chunk.within) == (expected, most)
        assert found.chunk.source == "systematic"


def test_a_layer_of_a_stack_gets_the_stacks_advice(tmp_path: Path) -> None:
    more = (
        Measurement.of("window_bias", 0.5 ** np.arange(41.0), "a.l0..l1"),
        Measurement.of("window_cosine", np.ones(41), "a.l0..l1"),
    )
    run = written(tmp_path / "run", more, {"stacks": {"a.l0..l1": ["a.l0", "a.l1"]}})
    found = advice(run, "a.l0")
    assert found is not None
    assert (found.name, found.window.steps, found.length) == ("a.l0..l1", 4, 40)
    assert run.window(0.1, "a.l0").steps == 22
    assert run.layers == ("a.l0",)


def seam() -> tuple[Measurement, ...]:
    return (
        Measurement.of("seam_window_bias", WINDOWS, "a.l0"),
        Measurement.of("seam_window_cosine", np.ones(41), "a.l0"),
        Measurement.of("seam_steps", np.array([10, 30]), "a.l0"),
        Measurement.of("seam_bias", 0.31, "a.l0"),
        Measurement.of("seam_mean_square", 0.24**2, "a.l0"),
        Measurement.of("seam_whole_mean_square", 1.0, "a.l0"),
        Measurement.of("seam_mean_square_error", 0.001, "a.l0"),
        Measurement.of("seam_whole_mean_square_error", 0.01, "a.l0"),
    )


def test_across_the_seam_from_a_run(tmp_path: Path) -> None:
    found = advice(written(tmp_path / "run", seam()), "a.l0")
    assert found is not None
    assert found.sentence.startswith(
        "A window of 22 keeps the gradient within 10 % of BPTT through all 40 steps"
    )
    assert found.sentence.endswith(
        "your chunks of 10 are off by 31 %, of which 24 % is systematic."
    )
    assert open_run(tmp_path / "run").window(0.1, "a.l0").steps == 22


def test_without_windows_there_is_no_advice(tmp_path: Path) -> None:
    with RunWriter(tmp_path / "run") as writer:
        writer.append(
            Recording(0, measurements=(Measurement.of("valid_samples", np.ones(3), "a"),))
        )
    assert advice(open_run(tmp_path / "run")) is None
    assert advice(open_run(tmp_path / "run"), "a") is None
