"""Letting a trained program over characters write: each character it draws is what it reads next."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightning_modules.batch import Batch
from lightning_modules.recurrence.recurrence import Recurrence, State
from lightning_modules.tasks.task import Writing
from lightning_modules.training.full import Full


@torch.no_grad()
def write(
    network: nn.Module, task: Writing, length: int = 80, temperature: float = 0.0, seed: int = 0
) -> str:
    """The prime and `length` characters after it; temperature 0 takes the likeliest every time.

    The global random state is left alone.
    """
    was_training = network.training
    network.eval()
    device = next(network.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    tokens = task.encode(task.prime)
    memory = _Memory()
    fresh = list(tokens)
    for _ in range(min(length, task.writes)):
        inputs = torch.tensor(fresh, device=device)[:, None]
        logits = network(Batch(inputs, inputs), memory)[-1, 0].cpu()
        if temperature > 0.0:
            odds = (logits / temperature).softmax(-1)
            fresh = [int(torch.multinomial(odds, 1, generator=generator))]
        else:
            fresh = [int(logits.argmax())]
        tokens += fresh
    network.train(was_training)
    return task.decode(tokens)


class _Memory(Full):
    """Goes on from the state that the last call left."""

    def __init__(self) -> None:
        self.state: State | None = None

    def __call__(
        self,
        recurrence: Recurrence,
        inputs: Tensor,
        state: State | None = None,
        lengths: Tensor | None = None,
        last: bool = False,
    ) -> tuple[Tensor, State]:
        outputs, self.state = super().__call__(recurrence, inputs, self.state, lengths)
        return outputs, self.state
