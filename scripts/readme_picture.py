"""Draws docs/reach.png, the README's picture, from three runs of the gallery: python scripts/readme_picture.py"""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import numpy as np

import rnndiag

ROOT = Path(__file__).parents[1]
SHOWN = (
    ("rnn-forgets", "tanh RNN", "#0072b2", "-"),
    ("lstm", "LSTM", "#d55e00", "--"),
    ("irnn", "IRNN (relu, identity start)", "#009e73", "-."),
)


def main() -> None:
    figure, axes = plt.subplots(figsize=(7.2, 3.1), dpi=150, layout="constrained")
    for name, label, colour, style in SHOWN:
        run = rnndiag.open_run(ROOT / "reports" / name / name)
        first = run["credit_profile"].valid(0).sel(profile_stat="profile").values
        share = rnndiag.reach(first)
        axes.semilogy(
            np.exp(first),
            style,
            color=colour,
            lw=2,
            label=f"{label}: 90 % within {share.text} of {first.size} steps",
        )
    axes.axhline(1.0, color="#b5bac2", lw=0.8, zorder=0)
    axes.set(xlabel="lag: steps back from the loss", ylabel="credit relative to lag 0")
    axes.set_title(
        "How far back the gradient reaches before the first step of training", fontsize=10
    )
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8.5)
    figure.savefig(ROOT / "docs" / "reach.png", metadata={"Software": None})


if __name__ == "__main__":
    main()
