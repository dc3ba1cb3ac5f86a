"""A program: a plain loop on two gloo processes. Arguments: kind of parallelism, run directory, file of weights."""

from __future__ import annotations

import contextlib
import sys
import tempfile
import warnings
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

import rnndiag

STEPS = 4


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.GRU(3, 8, batch_first=True), nn.Linear(8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(self.rnn(x)[0])
        return out


def wrapped(kind: str) -> nn.Module:
    torch.manual_seed(0)
    model = Net()
    if kind.startswith("ddp"):
        return nn.parallel.DistributedDataParallel(model)
    from torch.distributed.fsdp import fully_shard

    if kind == "fsdp-layers":
        fully_shard(model.rnn)
    return fully_shard(model)


def full(parameter: torch.Tensor) -> torch.Tensor:
    whole: torch.Tensor = getattr(parameter, "full_tensor", lambda: parameter)()
    return whole.detach().clone()


def train(kind: str, run_dir: str | None) -> dict[str, torch.Tensor]:
    model = wrapped(kind)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    torch.manual_seed(dist.get_rank())
    options: dict[str, Any] = {"every_n_steps": 2, "screen": True, "report": True, "budget": 10.0}
    recorder = (
        rnndiag.Recorder(model, run_dir, optimizer=optimizer, total_steps=STEPS, **options)
        if run_dir
        else contextlib.nullcontext()
    )
    parts = 2 if kind == "ddp-accumulate" else 1
    with recorder:
        for _ in range(STEPS):
            for part in range(parts):
                x = torch.randn(4, 9, 3)
                last = part == parts - 1
                sync = contextlib.nullcontext() if last else model.no_sync()
                with sync, recorder.step() if run_dir else contextlib.nullcontext() as step:
                    loss = (model(x) - x.sum(-1, keepdim=True)).square().mean()
                    if step is None:
                        loss.backward()
                    else:
                        step.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
    return {name: full(value) for name, value in model.named_parameters()}


def one_rank(rank: int, meeting: str, kind: str, run_dir: str, weights: str) -> None:
    dist.init_process_group("gloo", f"file://{meeting}", rank=rank, world_size=2)
    try:
        for path in (run_dir, ""):
            found = train(kind, path or None)
            if rank == 0:
                torch.save(found, f"{weights}.{'with' if path else 'without'}")
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    warnings.simplefilter("default")
    with tempfile.TemporaryDirectory() as scratch:
        torch.multiprocessing.start_processes(
            one_rank, (f"{scratch}/meeting", *sys.argv[1:]), nprocs=2, start_method="fork"
        )
