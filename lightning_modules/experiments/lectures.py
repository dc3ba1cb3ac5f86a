"""`python -m lightning_modules.experiments.lectures`: the story of the lectures, trained, recorded, told in tables.

Writes lectures.md beside this file, and the runs into `--out`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from lightning_modules.experiments import clipping, deep_transitions, long_gap, truncations

PAGE = Path(__file__).with_name("lectures.md")

OPENING = f"""# The story of the lectures

Made by `python -m lightning_modules.experiments.lectures`. All nets have {long_gap.HIDDEN} units and see the same
{long_gap.DATA["batches"]} minibatches of {long_gap.DATA["batch_size"]} sentences from one seed; the word that decides
the answer stands {long_gap.DISTANCE} steps before it; the loss is at the end alone. Chance is ln 4 = 1.386."""


@dataclass(frozen=True)
class Chapter:
    """A heading, what to look for, and what makes its table."""

    heading: str
    text: str
    make: Callable[[Path], str]


CHAPTERS = (
    Chapter(
        "Which nets learn a long gap",
        """
*Reach*: within how many steps 90 % of the credit lies, in the first and in the last recording. *Credit across the
gap*: how much the loss depends on the state at the deciding word, relative to the last state, before the first step of
training. Nets whose credit is gone before the gap is crossed have nothing to learn from.""",
        lambda out: long_gap.report(long_gap.train(out)),
    ),
    Chapter(
        "Clipping cannot undo vanishing",
        f"""
The {clipping.SYSTEM}, its gradient clipped by norm. The columns *lag d* tell by what factor clipping scaled the
part of W_hh's gradient that crosses d steps, in the first minibatch: the same factor for every lag. What comes from far
back stays as small a share as it was.""",
        lambda out: clipping.report(clipping.train(out)),
    ),
    Chapter(
        "What truncations cost",
        f"""
The {truncations.SYSTEM}, trained with each truncation. *Bias*: |E ĝ - g|/|g| against full BPTT on a held-out
minibatch, at the weights before training and at those after it; *spread*: the standard deviation of a draw, likewise
over |g|. The deciding word is {long_gap.DISTANCE + 1} states back, the last one included: what keeps fewer
never hears of it. The rule of 1997 is far off as a gradient, and yet its path through c spans the gap.""",
        lambda out: truncations.report(truncations.train(out)),
    ),
    Chapter(
        "Deep transitions lengthen the path, skip connections shorten it",
        f"""
Another task: which of two symbols came first, {deep_transitions.LENGTH} steps,
{deep_transitions.DATA["batches"]} minibatches. An MLP in the transition puts two matrices between one state and the
next; the skip connection leaves a way with one.""",
        lambda out: deep_transitions.report(deep_transitions.train(out)),
    ),
)


def page(out: Path) -> str:
    """The whole page."""
    parts = [OPENING]
    for chapter in CHAPTERS:
        made = chapter.make(out)
        print(f"\n{chapter.heading}\n\n{made}", flush=True)
        parts.append(f"## {chapter.heading}\n\n{chapter.text.strip()}\n\n{made}")
    return "\n\n".join(parts) + "\n"


def main(arguments: list[str] | None = None) -> int:
    """Train everything and write the page."""
    parser = argparse.ArgumentParser(
        prog="python -m lightning_modules.experiments.lectures", description=__doc__
    )
    parser.add_argument("--out", type=Path, help="keep the runs here (default: nowhere)")
    parser.add_argument("--page", type=Path, default=PAGE, help=f"default: {PAGE.name} beside it")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as elsewhere:
        text = page(options.out or Path(elsewhere))
    options.page.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
