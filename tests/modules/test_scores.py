"""What a program trains with is what rnndiag scores: the same truncations by two independent ways."""

import pytest
import torch

import rnndiag
from lightning_modules.program import Program
from lightning_modules.training import ESTIMATORS
from lightning_modules.training.full import Full
from rnndiag import estimators

KEYS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
CASES = [
    ("full", estimators.Full()),
    ({"name": "window", "tau": 5}, estimators.Window(5)),
    ({"name": "window", "tau": 1}, estimators.Window(1)),
    ({"name": "chunked", "k": 4}, estimators.Chunk(4)),
    ("cell_only", estimators.CellOnly()),
]


def program_and_batch(task, cell="lstm"):
    torch.manual_seed(0)
    program = Program(task, cell, hidden=5)
    return program, program.task.batch("train", 0, 4, seed=0)


def trained_gradient(program, batch, estimator):
    program.zero_grad()
    program.task.loss(program.network(batch, estimator), batch.targets).backward()
    rnn = program.network.recurrence.rnn
    return {key: getattr(rnn, f"{key}_l0").grad.clone() for key in KEYS}


def full_run(program, batch):
    with rnndiag.probe(program) as seen:
        program.task.loss(program.network(batch, Full()), batch.targets).backward()
    (run,) = seen.layer_runs
    return run


@pytest.mark.parametrize(("choice", "scored"), CASES)
@pytest.mark.parametrize(
    "task", [{"name": "banana", "distance": 8}, {"name": "lorenz", "length": 11}]
)
def test_the_trained_gradient_is_the_scored_one(task, choice, scored):
    program, batch = program_and_batch(task)
    trained = trained_gradient(program, batch, ESTIMATORS.build(choice))
    mean = rnndiag.estimate(full_run(program, batch), scored).mean
    for key in KEYS:
        torch.testing.assert_close(trained[key], mean[key].to(torch.float32), rtol=1e-4, atol=1e-6)


def test_the_mean_over_all_uniform_points_is_the_scored_mean(monkeypatch):
    program, batch = program_and_batch({"name": "banana", "distance": 8}, "gru")
    uniform = ESTIMATORS.build("uniform")
    total = dict.fromkeys(KEYS, 0.0)
    steps = batch.inputs.shape[0]
    for point in range(1, steps + 1):
        drawn = torch.tensor([point])
        monkeypatch.setattr(torch, "randint", lambda *size, drawn=drawn, **kwargs: drawn)
        for key, value in trained_gradient(program, batch, uniform).items():
            total[key] = total[key] + value / steps
    monkeypatch.undo()
    mean = rnndiag.estimate(full_run(program, batch), estimators.Uniform()).mean
    for key in KEYS:
        torch.testing.assert_close(total[key], mean[key].to(torch.float32), rtol=1e-4, atol=1e-6)
