"""Programs train: to the loss that their task calls solved, the same under the same seed, whatever the estimator."""

import warnings

import lightning as L
import pytest
import torch

from lightning_modules.data import TaskData
from lightning_modules.program import Program
from lightning_modules.tasks import TASKS
from lightning_modules.training import ESTIMATORS

SETTINGS = {
    "max_epochs": 1,
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_model_summary": False,
    "enable_progress_bar": False,
    "num_sanity_val_steps": 0,
    "gradient_clip_val": 1.0,
}


def fit(model, data, seed=0):
    L.seed_everything(seed, verbose=False)
    program = Program(**model)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not have many workers")
        warnings.filterwarnings("ignore", message=".*LeafSpec")
        L.Trainer(**SETTINGS).fit(program, TaskData(model["task"], seed=seed, **data))
    return program


@pytest.mark.parametrize(
    ("model", "data"),
    [
        pytest.param(
            {"task": "hello", "cell": "elman_tanh", "hidden": 8, "learning_rate": 0.03},
            {"batch_size": 1, "batches": 200},
            id="hello",
        ),
        pytest.param(
            {
                "task": {"name": "adding", "length": 50},
                "cell": "lstm",
                "hidden": 32,
                "learning_rate": 0.01,
                "initialisation": {"forget_bias": 1.0},
            },
            {"batches": 1200},
            id="adding",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {
                "task": {"name": "brackets", "length": 30, "deepest": 3},
                "cell": "lstm",
                "hidden": 24,
                "learning_rate": 0.01,
                "initialisation": {"forget_bias": 1.0},
            },
            {"batches": 500, "batch_size": 16},
            id="brackets",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_reaches_its_solved_loss(model, data, capsys):
    program = fit(model, data)
    assert program.results["loss"] <= program.task.solved
    assert ": solved;" in capsys.readouterr().out


def test_hello_writes_the_word():
    model = {"task": "hello", "cell": "elman_tanh", "hidden": 8, "learning_rate": 0.03}
    assert fit(model, {"batch_size": 1, "batches": 150}).written == "hello"


@pytest.mark.parametrize("estimator", ["full", "bernoulli", "uniform"])
def test_the_same_seed_gives_the_same_weights(estimator):
    model = {
        "task": {"name": "text", "text": "this", "length": 10},
        "cell": "gru",
        "hidden": 8,
        "regularisation": "variational",
        "estimator": estimator,
    }
    first, again, other = (fit(model, {"batches": 5}, seed) for seed in (3, 3, 4))
    for one, two in zip(first.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, two)
    pairs = zip(first.parameters(), other.parameters(), strict=True)
    assert any(not torch.equal(one, two) for one, two in pairs)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_every_estimator_trains_a_many_to_many_and_a_many_to_one_program(estimator):
    for task in ({"name": "text", "text": "this", "length": 24, "stream": True}, "banana"):
        model = {"task": task, "cell": "lstm", "hidden": 6, "estimator": estimator}
        program = fit(model, {"batches": 2, "batch_size": 4})
        assert 0 < program.results["loss"] < 10


@pytest.mark.parametrize("teacher_forcing", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("task", ["reverse_digits", "captions"])
def test_decoders_train_with_and_without_teacher_forcing(task, teacher_forcing):
    model = {"task": task, "cell": "lstm", "hidden": 8, "teacher_forcing": teacher_forcing}
    program = fit(model, {"batches": 3, "batch_size": 4})
    assert program.results["loss"] > 0


def test_a_decoder_is_told_what_it_said_outside_of_training():
    torch.manual_seed(0)
    program = Program("reverse_digits", "gru", hidden=8)
    task = TASKS.build("reverse_digits")
    batch = task.batch("train", 0, 4, seed=0)
    other = batch._replace(targets=(batch.targets + 1).clamp(0, 9))
    assert not torch.equal(program(batch), program(other))
    program.eval()
    assert torch.equal(program(batch), program(other))


def test_states_are_not_told_beyond_a_sequences_length():
    torch.manual_seed(0)
    program = Program("brackets", "lstm", hidden=8, wiring="bidirectional")
    batch = program.task.batch("train", 0, 6, seed=0)
    beyond = torch.arange(batch.inputs.shape[0])[:, None] >= batch.lengths[None]
    changed = batch._replace(inputs=torch.where(beyond, 1, batch.inputs))
    torch.testing.assert_close(program(changed)[~beyond], program(batch)[~beyond])
