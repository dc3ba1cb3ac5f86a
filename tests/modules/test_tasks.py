"""Tasks: deterministic, of the stated chance level, and what they say they are."""

import math

import pytest
import torch

from lightning_modules.batch import IGNORED
from lightning_modules.patterns import PATTERNS
from lightning_modules.tasks import TASKS
from lightning_modules.tasks.banana import FRUITS, sentence
from lightning_modules.tasks.brackets import CLOSE, OPEN
from lightning_modules.tasks.captions import WORDS

SMALL = {"text": {"characters": 5000, "length": 30}}


def small(name):
    return TASKS.build({"name": name, **SMALL.get(name, {})})


@pytest.mark.parametrize("name", TASKS)
def test_a_seed_gives_the_same_data_and_another_seed_other_data(name):
    task = small(name)
    first, again = task.batch("train", 3, 8, seed=1), task.batch("train", 3, 8, seed=1)
    for one, two in zip(first, again, strict=True):
        assert (one is None and two is None) or torch.equal(one, two)
    if name != "hello":
        for other in (task.batch("train", 4, 8, 1), task.batch("train", 3, 8, 2)):
            assert not torch.equal(first.inputs, other.inputs)
        assert not torch.equal(first.inputs, task.batch("held-out", 3, 8, 1).inputs)


@pytest.mark.parametrize("name", TASKS)
def test_states_its_levels(name):
    task = small(name)
    assert 0 < task.solved < task.chance
    assert task.pattern in PATTERNS


@pytest.mark.parametrize("name", TASKS)
def test_drawing_leaves_the_global_random_state_alone(name):
    before = torch.get_rng_state()
    small(name).batch("train", 0, 4, seed=0)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    "name", ["adding", "temporal_order", "banana", "copy_memory", "captions", "reverse_digits"]
)
def test_the_best_answer_that_looks_at_nothing_has_the_chance_level(name):
    task = small(name)
    targets = task.batch("train", 0, 4000, seed=0).targets
    if task.classifies:
        steps = targets if targets.dim() == 2 else targets[None]
        losses = []
        for row in steps:
            asked = row[row != IGNORED]
            if len(asked):
                share = torch.bincount(asked, minlength=task.output_size) / len(asked)
                losses.append(-(share * share.clamp(min=1e-12).log()).sum())
        level = float(torch.stack(losses).mean())
    else:
        level = float(targets.var())
    assert level == pytest.approx(task.chance, rel=0.04)


def test_lorenz_stays_on_its_attractor():
    batch = TASKS.build("lorenz").batch("train", 0, 500, seed=0)
    assert float(batch.targets.var()) == pytest.approx(1.0, rel=0.05)
    assert torch.equal(batch.inputs[5:], batch.targets[:-5])


def test_adding_adds_the_two_marked_numbers():
    batch = TASKS.build({"name": "adding", "length": 9}).batch("train", 0, 16, seed=0)
    numbers, marks = batch.inputs.unbind(-1)
    assert torch.equal(marks.sum(0), torch.full((16,), 2.0))
    for sequence in range(16):
        chosen = numbers[:, sequence][marks[:, sequence] > 0]
        assert float(batch.targets[sequence]) == pytest.approx(float(chosen.sum()))


def test_brackets_count_by_hand():
    batch = TASKS.build("brackets").batch("train", 0, 8, seed=0)
    for sequence, length in enumerate(batch.lengths.tolist()):
        depth = 0
        for step in range(length):
            token = int(batch.inputs[step, sequence])
            depth += {OPEN: 1, CLOSE: -1}.get(token, 0)
            assert 0 <= depth <= 5
            assert int(batch.targets[step, sequence]) == depth
        assert (batch.targets[length:, sequence] == IGNORED).all()


def test_reversed_digits_are_the_digits_reversed():
    batch = TASKS.build("reverse_digits").batch("train", 0, 8, seed=0)
    for sequence, length in enumerate(batch.lengths.tolist()):
        said = batch.targets[:length, sequence].flip(0)
        assert torch.equal(said, batch.inputs[:length, sequence])
        assert (batch.targets[length:, sequence] == IGNORED).all()


def test_the_fruit_stands_at_the_chosen_distance():
    task = TASKS.build({"name": "banana", "distance": 12})
    batch = task.batch("train", 0, 4, seed=0)
    words = sentence(batch.inputs[:, 0].tolist()).split()
    assert words[:3] == ["Jane", "packed", "a"]
    assert words[-5:] == ["at", "noon", "she", "ate", "her"]
    assert words[3] == FRUITS[int(batch.targets[0])]
    assert len(words) - 1 - 3 == 12


def test_copy_asks_the_symbols_back_after_the_delay():
    task = TASKS.build({"name": "copy_memory", "symbols": 3, "alphabet": 4, "delay": 5})
    batch = task.batch("train", 0, 6, seed=0)
    assert torch.equal(batch.inputs[:3], batch.targets[-3:])
    assert (batch.targets[:-3] == IGNORED).all()
    assert (batch.inputs[8] == 5).all()


def test_order_is_the_order_of_the_two_symbols():
    batch = TASKS.build("temporal_order").batch("train", 0, 16, seed=0)
    for sequence in range(16):
        column = batch.inputs[:, sequence]
        first, second = (column[column >= 4] - 4).tolist()
        assert int(batch.targets[sequence]) == 2 * first + second


def test_a_caption_tells_the_size_of_its_shape():
    batch = TASKS.build({"name": "captions", "noise": 0.0}).batch("train", 0, 64, seed=0)
    area = batch.inputs.sum((1, 2, 3))
    large = batch.targets[0] == WORDS.index("large")
    for word in ("square", "circle", "cross"):
        same = batch.targets[1] == WORDS.index(word)
        assert area[same & large].min() > area[same & ~large].max()


def test_the_text_streams_on_from_batch_to_batch():
    task = TASKS.build(
        {"name": "text", "text": "topics", "characters": 4000, "length": 25, "stream": True}
    )
    first, second = (task.batch("train", index, 4, seed=0) for index in (0, 1))
    assert torch.equal(first.targets[-1], second.inputs[0])
    assert torch.equal(first.inputs[1:], first.targets[:-1])


def test_the_zen_is_read_without_printing_it(capsys):
    task = TASKS.build({"name": "text", "text": "this", "length": 20})
    assert "Beautiful is better than ugly" in task.trained()
    assert capsys.readouterr().out == ""
    assert task.decode(task.encode("The")) == "The"
    assert task.solved < task.chance < math.log(len(task.alphabet))
