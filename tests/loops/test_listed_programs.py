"""Loops of published models: windows and adjoints match detaching by hand, or are withdrawn; training is untouched."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from loops.listed_programs import PROGRAMS
from loops.programs.base import Program
from loops.programs.carried import Carried
from loops.programs.jumping import Jumping

import rnndiag
from rnndiag import Recording

pytestmark = pytest.mark.usefixtures("double")

AUTOMATIC = sorted(k for k, made in PROGRAMS.items() if not issubclass(made, Carried | Jumping))
ALL = sorted(PROGRAMS)
AROUND = sorted(name for name, made in PROGRAMS.items() if issubclass(made, Jumping))


def recorded(program: Program, carry: Any) -> Recording:
    """The recording of one step; its gradients are those of the plain step, bit for bit."""
    program.run().backward()
    plain = {name: value.grad for name, value in program.named_parameters()}
    program.zero_grad()
    with rnndiag.probe(program, steps=program.steps) as probe:
        program.run(carry=carry).backward()
    for name, value in program.named_parameters():
        gradient = plain[name]
        assert (gradient is None) == (value.grad is None)
        assert gradient is None or torch.equal(gradient, value.grad), name
    return probe.recording


def matches_detaching(program: Program, recording: Recording, layer: str) -> None:
    bias = recording["window_bias", layer]
    named = dict(program.named_parameters())
    keys = recording["tail_norm", layer].coordinates["parameter"]
    own = [named[n] for key in keys for n in (key, f"{layer}.{key}") if n in named]
    assert len(own) == len(keys) - 1 > 0, keys
    whole, lags = program.window(program.T, own), list(bias.coordinates["lag"])
    for width in (1, 2, 4, program.T // 2, 8):
        by_hand = float((program.window(width, own) - whole).norm() / whole.norm())
        found = float(bias.values[lags.index(str(width))]) if str(width) in lags else 0.0
        assert abs(found - by_hand) < 1e-9, width
    if "resets" in recording.notes:
        return  # a time step counts from the last reset there
    adjoints, expected = recording["adjoint_norm", layer].values[:, 0], program.adjoint_norms()
    assert len(adjoints) == len(expected)
    for t, size in enumerate(expected):
        assert abs(adjoints[t] - size) < 1e-10 * max(1.0, max(expected)), t


@pytest.mark.parametrize("name", AUTOMATIC)
def test_loops_of_modules_match_detaching_by_hand(name: str) -> None:
    program = PROGRAMS[name]()
    recording = recorded(program, None)
    assert recording.verdict == "exact", recording.reasons
    assert recording.layers == (program.watched,)
    matches_detaching(program, recording, program.watched or "")


@pytest.mark.parametrize("name", ALL)
def test_loops_marked_by_carry_match_detaching_by_hand(name: str) -> None:
    program = PROGRAMS[name]()
    program.watched = None
    recording = recorded(program, rnndiag.carry)
    assert recording.verdict == "exact", recording.reasons
    matches_detaching(program, recording, "loop")


@pytest.mark.parametrize("name", AROUND)
def test_what_leads_around_the_state_withdraws_the_windows(name: str) -> None:
    recording = recorded(PROGRAMS[name](), None)
    assert recording.verdict == "open"
    assert not any(("window_bias", layer) in recording for layer in recording.layers)
    assert any("in between" in reason or "order" in reason for reason in recording.reasons.values())
