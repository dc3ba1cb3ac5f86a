"""A program: trains with the callback in forked children until they are killed. Arguments: folder, seeds ..."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
import warnings
from pathlib import Path

import fits
import torch

import rnndiag


def train(run_dir: Path) -> None:
    """Records every step and says so when a recording is on disk."""
    callback = rnndiag.GradientDiagnostics(
        run_dir, every_n_steps=1, strict=True, report=False, measures=["contributions", "gates"]
    )

    class Told(fits.Net):
        def on_train_batch_start(self, batch: object, batch_idx: int) -> None:
            if self.global_step > 0:  # what the step before appended has been acknowledged
                with run_dir.with_suffix(".told").open("w") as file:
                    file.write(str(self.global_step))

    fits.fit(Told, [callback], steps=100_000)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    folder, *seeds = sys.argv[1:]
    for seed in seeds:
        child = os.fork()
        if child == 0:
            train(Path(folder) / seed)
            os._exit(0)
        moment = random.Random(int(seed))
        told = (Path(folder) / seed).with_suffix(".told")
        if moment.random() < 0.8:  # most are killed once they record, the others wherever they are
            while not told.exists():
                time.sleep(0.002)
        time.sleep(moment.uniform(0.0, 0.4))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
