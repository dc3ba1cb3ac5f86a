"""Entries by name: a wrong name and a wrong option are told with what would have been right."""

import pytest

from lightning_modules.catalogue import CATALOGUE, listing
from lightning_modules.cells import CELLS
from lightning_modules.program import Program
from lightning_modules.tasks import TASKS
from rnndiag.errors import BadArgument


def test_every_kind_is_listed():
    text = listing()
    for registry in CATALOGUE.values():
        for name in registry:
            assert name in text


def test_a_misspelt_name_gets_a_hint():
    with pytest.raises(
        BadArgument, match=r"no cell called 'peephole'.*Did you mean 'peephole_lstm'"
    ):
        CELLS["peephole"]


def test_an_unknown_option_gets_the_known_ones():
    with pytest.raises(BadArgument, match=r"no option 'lenght'.*length"):
        TASKS.build({"name": "adding", "lenght": 3})


def test_options_without_a_name():
    with pytest.raises(BadArgument, match="does not say which one"):
        TASKS.build({"length": 3})


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"task": "adding"}, "needs a cell"),
        ({"task": "adding", "cell": "lstm", "wiring": "groups"}, "takes no cell"),
        ({"task": "adding", "wiring": "groups", "layers": 2}, "one layer, not 2"),
        (
            {"task": "adding", "cell": "irnn", "initialisation": {"forget_bias": 1.0}},
            "no gate that",
        ),
        (
            {"task": "adding", "cell": "gru", "initialisation": {"hidden": "eye"}},
            "no initialisation",
        ),
        ({"task": "adding", "cell": "gru", "initialisation": {"gain": 1.0}}, "no option 'gain'"),
        (
            {"task": "adding", "wiring": "groups", "initialisation": {"hidden": "zero"}},
            "of its own",
        ),
        ({"task": {"name": "adding", "length": 1}, "cell": "gru"}, "length is 1"),
        ({"task": "adding", "cell": "gru", "hidden": 0}, "no recurrence"),
        ({"task": "captions", "cell": "gru", "wiring": "bidirectional"}, "decoder says one token"),
        ({"task": "reverse_digits", "cell": "gru", "teacher_forcing": 2.0}, "from 0 to 1"),
        ({"task": "adding", "cell": "gru", "estimator": {"name": "window", "tau": 0}}, "tau is 0"),
        (
            {"task": "adding", "cell": "gru", "estimator": {"name": "bernoulli", "p": 0.0}},
            "p is 0.0",
        ),
        (
            {"task": "text", "cell": "gru", "regularisation": {"name": "variational", "p": 1.0}},
            "prob",
        ),
        ({"task": {"name": "text", "text": "novel"}, "cell": "gru"}, "no text 'novel'"),
    ],
)
def test_what_does_not_fit_together_is_refused(arguments, words):
    with pytest.raises(BadArgument, match=words):
        Program(**arguments)
