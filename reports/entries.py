"""The runs of the gallery: which program each one is, and what it is there to show."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Entry:
    """One run: a program of lightning_modules, made small, with a few options changed."""

    name: str
    title: str
    program: str
    options: tuple[str, ...] = ()
    """More arguments of `python -m lightning_modules fit`."""
    steps: int = 240
    every: int = 40


_RECALL = '--model.task={"name": "copy_memory", "symbols": 1, "alphabet": 4, "delay": 28}'
"""One symbol of four, asked back 29 steps later."""

_CHANCE = "--trainer.callbacks.chance=0.1667"
"""The variance of the sum of two uniform numbers: the loss of always saying 1."""

ENTRIES = (
    Entry(
        "stuck",
        "Stuck: an LSTM is asked what it saw 29 steps ago, with a forget bias of 0",
        "adding_lstm",
        (
            _RECALL,
            '--model.initialisation={"forget_bias": 0.0}',
            "--trainer.callbacks.chance=1.386",
        ),
    ),
    Entry(
        "learned",
        "Learned: the same LSTM, with the forget bias that the diagnosis names",
        "adding_lstm",
        (
            _RECALL,
            '--model.initialisation={"forget_bias": 3.4}',
            "--trainer.callbacks.chance=1.386",
        ),
    ),
    Entry(
        "rnn-forgets",
        "A tanh RNN that forgets: adding two numbers over 50 steps",
        "adding_relu",
        (
            "--model.cell=elman_tanh",
            '--model.initialisation={"hidden": "orthogonal", "hidden_gain": 0.8}',
            _CHANCE,
        ),
    ),
    Entry("irnn", "An IRNN: a relu net that starts as the identity", "adding_irnn"),
    Entry(
        "lstm",
        "An LSTM whose forget gate starts open: adding two numbers over 50 steps",
        "adding_lstm",
        ('--model.initialisation={"forget_bias": 3.9}', _CHANCE),
        steps=720,
        every=120,
    ),
    Entry("gru", "A GRU that copies symbols over a delay", "copy_gru"),
    Entry(
        "bidirectional", "A bidirectional LSTM on bracket depth", "brackets_bidirectional", every=30
    ),
    Entry("seq2seq", "An encoder and a decoder that reverse digits", "reverse_seq2seq"),
    Entry(
        "explodes",
        "A relu RNN started too large, without clipping: it explodes",
        "adding_relu",
        (
            '--model.initialisation={"hidden": "orthogonal", "hidden_gain": 2.2}',
            "--trainer.gradient_clip_val=null",
            "--model.learning_rate=0.0003",
        ),
        steps=60,
        every=10,
    ),
    Entry(
        "truncated-too-short",
        "An LSTM trained in chunks of 5 steps: the state is carried, the gradient is cut",
        "adding_chunked",
        (
            '--model.task={"name": "copy_memory", "symbols": 1, "alphabet": 4, "delay": 18}',
            '--model.estimator={"name": "chunked", "k": 5}',
            '--trainer.callbacks.measures=["contributions", "lags", "gates", "swing"]',
            "--trainer.callbacks.needs=19",
        ),
        steps=120,
        every=30,
    ),
    Entry(
        "seam",
        "A language model by TBPTT in chunks of 8: the state is carried over the seam, the gradient is not",
        "text_carried",
        (
            "--model.hidden=24",
            "--model.layers=1",
            "--model.learning_rate=0.02",
            '--model.task={"name": "text", "characters": 60000, "length": 8, "stream": true}',
        ),
        steps=240,
        every=40,
    ),
)
