"""Looks of a chunk loop: the tails of every window of one chunk's losses, from one pass over the horizon.

The losses are those of the chunk. The steps before it, as far as the horizon, are run again with a graph, for at most
`SEQUENCES` rows of the batch; one backward pass then gives the adjoints of all steps, and the tail of window w is what
steps more than w back give to the recurrent weights. All windows come from this one pass.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Any

import torch
from torch import Tensor, nn

from rnndiag.engine.adjoints import Adjoints, adjoints
from rnndiag.engine.contributions import factors
from rnndiag.engine.layer_run import LayerRun
from rnndiag.errors import NotSupported, RnndiagError
from rnndiag.recorder.probe import probe
from rnndiag.train.auto import Auto, Change
from rnndiag.train.look import FEWEST, Look
from rnndiag.train.random_state import RandomState

SEQUENCES = 16
"""Rows of the batch that a look runs."""


def tails_by_sequence(
    runs: Sequence[LayerRun],
    windows: Sequence[int],
    made: Callable[[LayerRun], Adjoints] = adjoints,
) -> tuple[Tensor, Tensor]:
    """Inner products of the tails of each sequence, over all recurrent weights.

    Args:
        runs: Layer runs of consecutive calls; those of one layer follow one another in time, and the losses are at the
            end. Stacked layers are taken together.
        windows: In ascending order; 0 is the whole gradient.
        made: Gives the adjoints of a run.

    Returns:
        |S_b|^2 and <S_b, S> by window and sequence, (windows, B).
    """
    layers: dict[str, list[LayerRun]] = {}
    for run in runs:
        layers.setdefault(run.name.partition("#")[0], []).append(run)
    lengths = {name: sum(run.T for run in own) for name, own in layers.items()}
    if len(set(lengths.values())) != 1 or any(run.reverse for run in runs):
        raise NotSupported(
            f"The recurrent layers ran for different numbers of steps or backwards in time ({lengths}).",
            "A window that sets itself is for layers that run over the chunk together.",
        )
    (T,) = set(lengths.values())
    own = reach = torch.zeros(())
    for parts in layers.values():
        found = [made(run) for run in parts]
        for key in parts[0].weights:
            pairs = [factors(adj, key) for adj in found]
            if any(pair is None for pair in pairs):
                raise NotSupported(
                    f"The weight {key} of {parts[0].name} has no gradient by outer products.",
                    "A window that sets itself is for RNN, LSTM and GRU layers and cells.",
                )
            left = torch.cat([pair.left for pair in pairs if pair is not None])
            rights = [pair.right for pair in pairs if pair is not None and pair.right is not None]
            right = torch.cat(rights) if rights else None
            squares, products = _weight_tails(left, right, windows, T)
            own, reach = own + squares, reach + products
    return own, reach


def _weight_tails(
    left: Tensor, right: Tensor | None, windows: Sequence[int], T: int
) -> tuple[Tensor, Tensor]:
    """|S_b|^2 and <S_b, S> of one weight: left (T, B, m), right (T, B, n) or None for a bias."""
    tail: Tensor | None = None
    squares, products = [], []
    begin = 0
    for window in reversed(windows):
        end = max(0, T - window)
        if end > begin:
            a = left[begin:end]
            if right is None:
                piece = a.sum(0)
            else:
                piece = torch.bmm(a.permute(1, 2, 0), right[begin:end].transpose(0, 1)).flatten(1)
            tail = piece if tail is None else tail + piece
            begin = end
        if tail is None:
            squares.append(left.new_zeros(left.shape[1]).double())
            products.append(squares[-1])
        else:
            squares.append(tail.square().sum(1).double())
            products.append((tail @ tail.sum(0)).double())
    return torch.stack(squares[::-1]), torch.stack(products[::-1])


class WindowLooks:
    """Looks for an `Auto` from within a `ChunkLoop`.

    Args:
        auto: The controller.
        model: The module that is trained; its recurrent layers are watched.
        settle: Called with the window after each look, and gives the window to use: rank 0's where there are several.
    """

    def __init__(
        self, auto: Auto, model: nn.Module, settle: Callable[[int], int] = lambda window: window
    ) -> None:
        self.auto, self.model, self.settle = auto, model, settle
        self.silent_because = ""
        """Why no look can be taken; the longest window is held."""
        self._waiting = False

    def due(self, step: int, number: int, chunks: int) -> bool:
        """Whether to look at this chunk. Looks take turns among the chunks of a batch."""
        if self.silent_because:
            return False
        self._waiting |= self.auto.due(step)
        return self._waiting and number == self.auto.looks % chunks

    def rows(self, batch: Any) -> Tensor:
        """Which sequences of a `TimeBatch` to look at: all of them in turn."""
        count = min(SEQUENCES, batch.B)
        rows: Tensor = (torch.arange(count) + self.auto.looks * count) % batch.B
        return rows

    def look(self, run: Callable[[], Any], step: int) -> Change | None:
        """Take a look: `run()` gives the loss of a chunk with a graph over the horizon."""
        self._waiting, before = False, monotonic()
        try:
            with _untouched(self.model), probe(self.model) as seen:
                loss = run()
                weights = [p for p in self.model.parameters() if p.requires_grad]
                torch.autograd.grad(loss, weights, allow_unused=True)
            made = {name: adj for one in seen.backward_passes for name, adj in one.adjoints.items()}
            own, reach = tails_by_sequence(
                seen.layer_runs,
                (0, *self.auto.grid),
                lambda one: made[one.name] if one.name in made else adjoints(one),
            )
            if own.shape[1] < FEWEST:
                raise NotSupported(
                    f"A batch has {own.shape[1]} sequences.", f"Looks need at least {FEWEST}."
                )
            look = Look.of_shares((0, *self.auto.grid), own, reach)
            change = None if look is None else self.auto.see(look, step, float(loss.detach()))
        except RnndiagError as error:
            self.silent_because = str(error)
            warnings.warn(
                f"The window cannot set itself and stays at {self.auto.window}: {error}",
                stacklevel=2,
            )
            change = None
        self.auto.looked(monotonic() - before)
        return change


class _untouched:
    """Random draws and buffers of a module are as before."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def __enter__(self) -> None:
        device = next((p.device for p in self.model.parameters()), torch.device("cpu"))
        self.draws = RandomState.now(device)
        self.buffers = [(buffer, buffer.clone()) for buffer in self.model.buffers()]

    def __exit__(self, *error: object) -> None:
        self.draws.restore()
        with torch.no_grad():
            for buffer, value in self.buffers:
                if not torch.equal(buffer, value):
                    buffer.copy_(value)
