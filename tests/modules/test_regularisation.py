"""Masks: constant over a sequence, fresh from one to the next, gone outside of training."""

import pytest
import torch

from lightning_modules.cells import CELLS
from lightning_modules.program import Program
from lightning_modules.regularisation import REGULARISATIONS
from lightning_modules.regularisation.variational import SequenceDropout
from lightning_modules.wirings import WIRINGS, Plan

TEXT = {"name": "text", "text": "this", "length": 12}


def recurrence_of(name, cell="lstm", layers=2, p=0.5):
    rule = REGULARISATIONS.build({"name": name, "p": p})
    recurrence = WIRINGS["stack"].make(Plan(6, 8, layers, 4, True, CELLS[cell], rule), "stack")
    rule.on_recurrence(recurrence)
    return recurrence


def test_a_variational_mask_is_the_same_at_every_step_and_differs_between_sequences():
    torch.manual_seed(0)
    dropout = SequenceDropout(0.5)
    out = dropout(torch.ones(40, 16, 8))
    assert torch.equal(out, out[:1].expand_as(out))
    assert set(out.unique().tolist()) == {0.0, 2.0}
    assert len({tuple(mask) for mask in out[0].tolist()}) > 8
    assert not torch.equal(dropout(torch.ones(40, 16, 8)), out)


def test_a_variational_mask_keeps_the_mean():
    torch.manual_seed(0)
    out = SequenceDropout(0.3)(torch.ones(1, 4000, 8))
    assert float(out.mean()) == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize("cell", ["lstm", "peephole_lstm"])
def test_variational_masks_stand_before_every_layer_and_after_the_last(cell):
    recurrence = recurrence_of("variational", cell)
    assert [type(module) for module in recurrence.between] == [SequenceDropout] * 3
    seen = []
    for module in recurrence.between:
        module.register_forward_hook(lambda module, args, out: seen.append((args[0], out)))
    recurrence(torch.ones(9, 3, 6))
    for before, after in seen:
        dropped = (after == 0) & (before != 0)
        assert torch.equal(dropped, dropped[:1].expand_as(dropped))
    assert any(((after == 0) & (before != 0)).any() for before, after in seen)


@pytest.mark.parametrize("cell", ["lstm", "gru", "irnn", "coupled_lstm"])
def test_drop_connect_drops_recurrent_weights_for_the_whole_sequence(cell):
    torch.manual_seed(0)
    recurrence = recurrence_of("drop_connect", cell, layers=1)
    inputs = torch.randn(7, 2, 6)
    outputs, _ = recurrence(inputs)
    layer = recurrence.rnn if hasattr(recurrence, "rnn") else recurrence.layers[0].step
    name = "weight_hh_l0" if hasattr(recurrence, "rnn") else "weight_hh"
    dropped = getattr(layer, name) == 0
    assert 0.3 < float(dropped.float().mean()) < 0.7
    mask = layer.parametrizations[name][0].mask.clone()
    outputs.sum().backward()
    gradient = layer.parametrizations[name].original.grad
    assert (gradient[mask == 0] == 0).all()
    again, _ = recurrence(inputs)
    assert not torch.equal(layer.parametrizations[name][0].mask, mask)
    assert not torch.equal(again, outputs)


def test_drop_connect_runs_with_exactly_the_masked_weights():
    torch.manual_seed(0)
    recurrence = recurrence_of("drop_connect", "gru", layers=1)
    inputs = torch.randn(7, 2, 6)
    outputs, _ = recurrence(inputs)
    plain = torch.nn.GRU(6, 8)
    with torch.no_grad():
        for key in ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"):
            getattr(plain, key).copy_(getattr(recurrence.rnn, key))
    torch.testing.assert_close(plain(inputs)[0], outputs)


@pytest.mark.parametrize("name", ["variational", "drop_connect", "layer_dropout"])
def test_outside_of_training_nothing_is_dropped(name):
    torch.manual_seed(0)
    recurrence = recurrence_of(name).eval()
    inputs = torch.randn(7, 2, 6)
    first, second = recurrence(inputs)[0], recurrence(inputs)[0]
    assert torch.equal(first, second)


def test_layer_dropout_stands_between_layers_only_as_torchs_own_does():
    assert recurrence_of("layer_dropout", p=0.25).rnn.dropout == 0.25
    between = recurrence_of("layer_dropout", "peephole_lstm", p=0.25).between
    assert [getattr(module, "p", None) for module in between] == [None, 0.25, None]


@pytest.mark.parametrize("name", ["variational", "drop_connect", "layer_dropout"])
def test_a_program_trains_with_it(name):
    torch.manual_seed(0)
    program = Program(TEXT, "lstm", hidden=8, layers=2, regularisation={"name": name, "p": 0.2})
    batch = program.task.batch("train", 0, 4, seed=0)
    loss = program.task.loss(program.network(batch, program.estimator), batch.targets)
    loss.backward()
    assert loss.isfinite()
    assert all(parameter.grad is not None for parameter in program.parameters())
