"""The map of what memory holds: principal components as numpy has them, one map a layer, suffixes as labels."""

import numpy as np
import pytest
import torch

from lightning_modules.program import Program
from lightning_modules.state_map import project, state_map
from rnndiag.errors import BadArgument


def program_of(**options):
    torch.manual_seed(0)
    task = {"name": "text", "text": "this", "length": 10}
    return Program(task, **{"cell": "lstm", "hidden": 6, "layers": 2, **options})


def test_projection_is_that_of_the_covariances_eigenvectors():
    rng = np.random.default_rng(0)
    states = rng.normal(size=(200, 5)) * [5, 3, 1, 0.5, 0.1] + 7
    points, share = project(states)
    values, vectors = np.linalg.eigh(np.cov(states.T))
    centred = states - states.mean(0)
    for place in range(2):
        expected = centred @ vectors[:, -1 - place]
        assert abs(np.corrcoef(points[:, place], expected)[0, 1]) == pytest.approx(1.0)
        assert share[place] == pytest.approx(values[-1 - place] / values.sum())


def test_the_same_states_give_the_same_map_whatever_their_order():
    rng = np.random.default_rng(0)
    states = rng.normal(size=(50, 4)) * [4, 2, 1, 1]
    order = rng.permutation(50)
    np.testing.assert_allclose(project(states[order])[0], project(states)[0][order], atol=1e-12)


def test_states_that_never_move_have_no_variance():
    points, share = project(np.ones((10, 3)))
    assert not points.any()
    assert not share.any()


def test_every_layer_has_its_map_along_the_text():
    program = program_of()
    maps = state_map(program, "The Zen of Python")
    assert [layer.layer for layer in maps] == [
        "network.recurrence.rnn.l0",
        "network.recurrence.rnn.l1",
    ]
    assert maps[0].labels[:5] == ("T", "Th", "The", "he ", "e Z")
    outputs, _ = program.network.recurrence(
        program.network.reader(torch.tensor(program.task.encode("The Zen of Python")))[:, None]
    )
    np.testing.assert_allclose(maps[1].states, outputs[:, 0].detach().numpy(), atol=1e-6)
    assert maps[0].points.shape == (17, 2)
    assert program.training


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"cell": "peephole_lstm"}, ["layers.0.step", "layers.1.step"]),
        ({"wiring": "bypass", "cell": "gru"}, ["layers.0.rnn.l0", "layers.1.rnn.l0"]),
        ({"wiring": "groups", "cell": None, "layers": 1}, ["step:h1", "step:h2", "step:h3"]),
        ({"wiring": "bidirectional", "layers": 1}, ["rnn.l0", "rnn.l0.reverse"]),
    ],
)
def test_layers_are_called_as_in_a_recording(options, names):
    maps = state_map(program_of(**options), "Beautiful")
    assert [layer.layer for layer in maps] == [f"network.recurrence.{name}" for name in names]


def test_held_out_text_is_the_default():
    program = program_of()
    maps = state_map(program, characters=30)
    assert "".join(label[-1] for label in maps[0].labels) == program.task.held_out()[:30]


def test_measurements_carry_the_suffixes():
    points, variance = state_map(program_of(), "Beautiful")[0].measurements()
    assert (points.name, variance.name) == ("state_map", "state_map_variance")
    assert points.coordinates["token"][2] == "Bea"
    assert 0 < float(variance.values.sum()) <= 1


def test_what_cannot_be_mapped_is_refused():
    with pytest.raises(BadArgument, match="has no characters"):
        state_map(Program("adding", "gru", hidden=4))
    with pytest.raises(BadArgument, match="1 characters"):
        state_map(program_of(), "T")
