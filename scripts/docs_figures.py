"""Draws docs/figures/, the pictures of "Read a report", from the gallery's runs: python scripts/docs_figures.py

One figure, the states of a character model, is of no run of the gallery: that model is trained here for a minute.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")

from PIL import Image

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from rnndiag.cli import main as rnndiag  # noqa: E402 - the root is on the path from here on

OUT = ROOT / "docs" / "figures"
SHOWN = {
    "gru": ("F1", "F2", "F3", "F4", "F6", "F7", "F8", "F9"),
    "rnn-forgets": ("F5",),
    "seq2seq": ("F10",),
    "": ("F11",),
}
"""Run of the gallery -> the figures that are shown of it."""
WIDTH, COLOURS = 1100, 48


def text_model(folder: Path) -> Path:
    """A short run of the character model, with its states along held-out text."""
    from lightning_modules.__main__ import main as train

    configs = ROOT / "lightning_modules" / "configs"
    words = ["fit", "--config", str(configs / "text_lstm.yaml")]
    words += ["--config", str(configs / "small" / "text_lstm.yaml"), "--trainer.max_steps=300"]
    os.chdir(folder)
    train([*words, "--trainer.enable_progress_bar=false"])
    return folder / "runs" / "text_lstm"


def draw(run: Path, figures: tuple[str, ...], folder: Path) -> None:
    """Draw a run's figures, and keep those wanted, small."""
    status = rnndiag(
        [
            "report",
            str(run),
            "-o",
            str(folder / "page.html"),
            "--figures",
            str(folder),
            "--format",
            "png",
        ]
    )
    if status:
        raise SystemExit(status)
    for name in figures:
        (drawn,) = folder.glob(f"{name}-*.png")
        with Image.open(drawn) as picture:
            size = (WIDTH, round(WIDTH * picture.height / picture.width))
            small = picture.convert("RGB").resize(size, Image.Resampling.LANCZOS)
        small.quantize(COLOURS).save(OUT / f"{name}.png", optimize=True)


def main() -> None:
    OUT.mkdir(exist_ok=True)
    for name, figures in SHOWN.items():
        with tempfile.TemporaryDirectory() as folder:
            run = ROOT / "reports" / name / name if name else text_model(Path(folder))
            draw(run, figures, Path(folder))


if __name__ == "__main__":
    main()
