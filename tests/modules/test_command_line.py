"""The command line: every configuration builds, small forms stay small, and a fit leaves a run that can be read."""

import shutil

import pytest
import torch

import rnndiag
from lightning_modules.__main__ import main, run
from lightning_modules.programs import CONFIGS, HERE, entries, entry
from rnndiag.errors import BadArgument

QUICK = ["--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu"]
STRICT = ["--trainer.callbacks.strict=true", "--trainer.callbacks.every_n_steps=1"]


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """Runs are written to ./runs; configurations are named from the repository's root."""
    shutil.copytree(CONFIGS, tmp_path / CONFIGS.relative_to(HERE.parent))
    monkeypatch.chdir(tmp_path)
    # Lightning 2.6 calls a method that jsonargparse has deprecated.
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")


@pytest.mark.parametrize("small", [False, True])
@pytest.mark.parametrize("name", entries())
def test_every_configuration_builds(name, small):
    program, data = entry(name).build(small)
    assert program.task == data.task
    assert sum(parameter.numel() for parameter in program.parameters()) < (
        10**5 if small else 10**6
    )


@pytest.mark.parametrize("name", entries())
def test_every_program_takes_a_step(name):
    program, data = entry(name).build(small=True)
    batch = data.task.batch("train", 0, 2, seed=0)
    loss = program.task.loss(program.network(batch, program.estimator), batch.targets)
    loss.backward()
    assert loss.isfinite()


def test_every_configuration_has_a_small_form_and_no_small_form_is_left_over():
    assert {file.name for file in (CONFIGS / "small").iterdir()} == {
        f"{name}.yaml" for name in entries()
    }


def test_every_row_of_the_lectures_is_run_or_said_where_it_is():
    import yaml

    rows = yaml.safe_load((HERE / "rows.yaml").read_text(encoding="utf-8"))
    assert list(rows) == list(range(1, 35))
    run_here = {number for program in entries().values() for number in program.lectures}
    for number, row in rows.items():
        assert number in run_here or "also" in row, row


def test_an_unknown_program():
    with pytest.raises(BadArgument, match="no program 'adding_gru'"):
        entry("adding_gru")


@pytest.mark.usefixtures("elsewhere")
def test_fit_writes_a_run_of_the_callback_in_the_configuration(capsys):
    arguments = entry("banana_lstm").arguments(small=True)
    assert main([*arguments, *QUICK, *STRICT, "--data.batches=6"]) == 0
    assert "held-out loss" in capsys.readouterr().out
    recorded = rnndiag.open_run("runs/banana_lstm")
    assert recorded.layers == ("network.recurrence.rnn.l0",)
    assert recorded.last.verdict == "exact"
    labels = recorded.last.notes["labels"]["network.recurrence.rnn.l0"]
    assert labels[:3] == ["Jane", "packed", "a"]
    assert recorded.reach() > 1


@pytest.mark.usefixtures("elsewhere")
def test_the_state_map_is_stored_in_the_run():
    arguments = entry("text_lstm").arguments(small=True)
    cli = run([*arguments, *QUICK, *STRICT, "--data.batches=6"])
    recorded = rnndiag.open_run("runs/text_lstm")
    for layer in ("network.recurrence.rnn.l0", "network.recurrence.rnn.l1"):
        stored = recorded["state_map", layer].valid(0)
        assert stored.values.shape == (400, 2)
        suffixes = stored.coordinates["token"]
        assert "".join(suffix[-1] for suffix in suffixes) == cli.model.task.held_out()[:400]


@pytest.mark.usefixtures("elsewhere")
def test_what_is_chosen_on_the_command_line_counts():
    arguments = entry("adding_lstm").arguments(small=True)
    more = ["--model.cell=gru", "--model.initialisation=null", "--model.task.length=9"]
    cli = run([*arguments, *QUICK, *more, "--data.batches=1", "--seed_everything=7"])
    assert cli.model.network.recurrence.rnn.__class__ is torch.nn.GRU
    assert cli.datamodule.task.length == 9
    assert cli.datamodule.seed == 7


@pytest.mark.usefixtures("elsewhere")
def test_a_mistake_is_told_in_a_sentence(capsys):
    arguments = entry("adding_lstm").arguments(small=True)
    assert main([*arguments, *QUICK, "--model.cell=lst"]) == 2
    assert "There is no cell called 'lst'. Did you mean 'lstm'?" in capsys.readouterr().err


def test_list_names_what_there_is(capsys):
    assert main(["list"]) == 0
    assert "peephole_lstm" in capsys.readouterr().out
