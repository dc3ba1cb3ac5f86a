"""A program: trains a model that Lightning shards by FSDP2 over two processes. Argument: run directory."""

from __future__ import annotations

import sys
from typing import Any

import fits
import lightning.pytorch as L
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.fsdp import fully_shard

import rnndiag


class Sharded(fits.Net):
    """Every module's weights are spread over the processes."""

    def configure_model(self) -> None:
        for module in (self.rnn, self.head):
            fully_shard(module, mesh=self.device_mesh["data_parallel"])


if __name__ == "__main__":
    L.seed_everything(3, verbose=False)
    strategy = ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1)
    options: dict[str, Any] = {**fits.QUIET, "devices": 2, "strategy": strategy, "max_epochs": 1}
    callback = rnndiag.GradientDiagnostics(sys.argv[1], report=False)
    trainer = L.Trainer(**options, callbacks=[callback])
    trainer.fit(Sharded("GRU"), fits.loader(8))
    assert trainer.global_step == 4
