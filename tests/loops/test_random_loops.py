"""Loops generated at random: measured as detaching by hand measures them, or withdrawn; training untouched."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from loops.random_loops import RandomLoop

import rnndiag

pytestmark = pytest.mark.usefixtures("double")


def check(seed: int, carry: Any) -> str:
    """The verdict of one program, after its windows and its training were held against the program itself."""
    program = RandomLoop(seed)
    parameters = list(program.parameters())
    program.run().backward()
    expected = [value.grad for value in parameters]
    for value in parameters:
        value.grad = None
    with rnndiag.probe(program) as probe:
        program.run(carry=carry).backward()
    for gradient, value in zip(expected, parameters, strict=True):
        assert (gradient is None) == (value.grad is None), seed
        assert gradient is None or torch.equal(gradient, value.grad), seed
    recording = probe.recording
    on_graph = recording.notes.get("on_graph", {})
    named = dict(program.named_parameters())
    for layer in recording.layers:
        bias = recording.get("window_bias", layer)
        # a lower cell that the replay describes has its own windows, in which the upper ones are not cut
        if bias is None or (len(program.kinds) > 1 and layer not in on_graph):
            continue
        keys = [
            name
            for key in recording["tail_norm", layer].coordinates["parameter"]
            for name in (key, f"{layer}.{key}")
            if name in named
        ]
        own = [named[name] for name in keys]
        assert own, (seed, layer)
        whole = program.window(program.T, own)
        lags = list(bias.coordinates["lag"])
        for width in range(1, program.T):
            off = float((program.window(width, own) - whole).norm())
            found = float(bias.values[lags.index(str(width))]) if str(width) in lags else 0.0
            size = float(whole.norm())
            assert abs(found - (off / size if size else 0.0)) < 1e-9, (seed, layer, width)
    if recording.verdict == "open":
        assert any(reason.startswith("open: ") for reason in recording.reasons.values())
    return recording.verdict


@pytest.mark.parametrize("start", range(0, 40, 10))
def test_no_random_loop_is_called_exact_and_wrong(start: int) -> None:
    verdicts = [check(seed, None) for seed in range(start, start + 10)]
    assert verdicts.count("exact") >= 2


@pytest.mark.parametrize("start", range(500, 520, 10))
def test_random_loops_marked_by_carry_are_measured(start: int) -> None:
    verdicts = [check(seed, rnndiag.carry) for seed in range(start, start + 10)]
    assert "open" not in verdicts


@pytest.mark.long
@pytest.mark.parametrize("start", range(40, 500, 20))
def test_no_further_random_loop_is_called_exact_and_wrong(start: int) -> None:
    for seed in range(start, min(start + 20, 500)):
        check(seed, None)
