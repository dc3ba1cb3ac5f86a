"""Every program can be recorded: one step with a finite loss, every layer seen, and proofs inside their bounds."""

import math

import pytest
import torch

import rnndiag
from lightning_modules.cells import CELLS
from lightning_modules.program import Program
from lightning_modules.training import ESTIMATORS
from lightning_modules.wirings import WIRINGS

TASKS = {
    "tagging": {"name": "brackets", "length": 8},
    "answer": {"name": "banana", "distance": 6},
    "translation": {"name": "reverse_digits", "length": 4},
    "caption": "captions",
}
OWN = [name for name in WIRINGS if WIRINGS[name].own_step]


def step(model, probe):
    """One training step of a fresh program: the program and what was seen of it."""
    torch.manual_seed(0)
    program = Program(hidden=5, **model)
    batch = program.task.batch("train", 0, 4, seed=0)
    with rnndiag.probe(program) if probe else torch.enable_grad() as seen:
        loss = program.task.loss(program.network(batch, program.estimator), batch.targets)
        loss.backward()
    assert math.isfinite(float(loss.detach()))
    return program, seen


def proved(model, scaled=False):
    """Every recurrence is seen, and what is seen is proved; `scaled`: calls of one step each may be named."""
    program, seen = step(model, probe=True)
    assert seen.proofs
    for proof in seen.proofs:
        assert proof.verdict == "exact"
        assert len(proof.reasons) <= scaled
        assert all("one step" in reason for reason in proof.reasons)
        assert proof.worst < 1e-5
        assert all(layer.recursion < 1e-5 for layer in proof.layers.values())
    return program, seen


def names(seen):
    return {run.name.partition("#")[0] for run in seen.layer_runs}


@pytest.mark.parametrize("pattern", TASKS)
@pytest.mark.parametrize("cell", CELLS)
def test_every_cell_in_every_pattern(cell, pattern):
    program, seen = proved({"task": TASKS[pattern], "cell": cell, "layers": 2})
    expected = set()
    if pattern != "caption":
        expected |= set(program.network.recurrence.layer_names("network.recurrence"))
    if pattern in ("translation", "caption"):
        decoder = program.network.decoder.recurrence
        expected |= set(decoder.layer_names("network.decoder.recurrence"))
    assert names(seen) == expected


@pytest.mark.parametrize("wiring", WIRINGS)
def test_every_wiring(wiring):
    cells = [None] if wiring in OWN else ["lstm", "peephole_lstm"]
    for cell in cells:
        layers = 1 if wiring in OWN else 2
        proved({"task": TASKS["tagging"], "cell": cell, "wiring": wiring, "layers": layers})


@pytest.mark.parametrize("regularisation", ["variational", "drop_connect", "layer_dropout"])
@pytest.mark.parametrize("cell", ["lstm", "peephole_lstm"])
def test_every_regularisation_in_training_mode(cell, regularisation):
    model = {"task": TASKS["answer"], "cell": cell, "layers": 2, "regularisation": regularisation}
    program, _ = proved(model)
    assert program.training


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_every_estimator(estimator):
    model = {"task": {"name": "banana", "distance": 30}, "cell": "lstm", "estimator": estimator}
    proved(model, scaled=estimator in ("bernoulli", "uniform"))


@pytest.mark.parametrize("cell", ["lstm", "peephole_lstm", "lecture_gru"])
def test_looking_changes_no_gradient(cell):
    model = {"task": TASKS["translation"], "cell": cell, "layers": 2}
    alone, _ = step(model, probe=False)
    watched, _ = step(model, probe=True)
    for one, two in zip(alone.parameters(), watched.parameters(), strict=True):
        assert torch.equal(one.grad, two.grad)


def test_the_linear_cells_adjoints_are_powers_of_its_matrix():
    model = {"task": TASKS["answer"], "cell": "linear"}
    _, seen = proved(model)
    (run,) = seen.layer_runs
    run = run.to(torch.float64)
    found = rnndiag.adjoints(run).state
    weight, last = run.weights["weight_hh"], run.direct[0][-1]
    for back in range(run.T):
        closed = last @ torch.linalg.matrix_power(weight, back)
        torch.testing.assert_close(found[run.T - 1 - back], closed)


def test_a_linear_state_with_weight_one_forgets_nothing_and_grows():
    start = {"hidden": "identity", "bias": "zero"}
    model = {"task": {"name": "adding", "length": 40}, "cell": "linear", "initialisation": start}
    _, seen = proved(model)
    (run,) = seen.layer_runs
    profile = rnndiag.lag_sweep(run).profile.log
    torch.testing.assert_close(profile, torch.zeros_like(profile), atol=1e-5, rtol=0)
    sizes = run.states[0].norm(dim=-1).mean(1)
    assert sizes[39] > 1.5 * sizes[19] > 2 * sizes[9]
