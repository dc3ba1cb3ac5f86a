"""Looks of a chunk loop: the tails of every window for one chunk's losses, from one pass over the horizon.

The steps before the chunk, as far as the horizon, are rerun with a graph, for at most `SEQUENCES` rows of the batch;
one backward pass then gives the adjoints of all steps, and the tail of window w is the contribution of steps more than
w back to the gradient of the recurrent weights. All windows come from this one pass.
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
from rnndiag.recorder.capture import Capture
from rnndiag.recorder.capture.hook import unwatched
from rnndiag.recorder.probe import Probe
from rnndiag.train.auto import Auto, Change
from rnndiag.train.look import FEWEST, Look
from rnndiag.train.random_state import RandomState

SEQUENCES = 16
"""Most rows of the batch in a look."""


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
        for left, right in _outer_products(parts[0], found):
            squares, products = _weight_tails(left, right, windows, T)
            own, reach = own + squares, reach + products
    return own, reach


def _outer_products(run: LayerRun, found: Sequence[Adjoints]) -> list[tuple[Tensor, Tensor]]:
    """Left (T, B, m) and right factors (T, B, n) of the gradient; weights with one left factor share an entry."""
    groups: dict[int, tuple[Tensor, list[Tensor], int]] = {}
    for key in run.weights:
        pairs = [pair for adj in found if (pair := factors(adj, key)) is not None]
        if len(pairs) < len(found):
            raise NotSupported(
                f"The weight {key} of {run.name} has no gradient by outer products.",
                "A window that sets itself is for RNN, LSTM and GRU layers and cells.",
            )
        place = id(pairs[0].left)
        if place in groups:
            left, rights, biases = groups[place]
        else:
            left, rights, biases = torch.cat([pair.left for pair in pairs]), [], 0
        if pairs[0].right is None:
            biases += 1
        else:
            rights.append(torch.cat([pair.right for pair in pairs if pair.right is not None]))
        groups[place] = left, rights, biases
    merged = []
    for left, rights, biases in groups.values():
        # A bias is a weight of a constant input; two biases with one gradient count twice.
        ones = [left.new_full((*left.shape[:2], 1), biases**0.5)] if biases else []
        merged.append((left, torch.cat([*rights, *ones], -1)))
    return merged


def _weight_tails(
    left: Tensor, right: Tensor, windows: Sequence[int], T: int
) -> tuple[Tensor, Tensor]:
    """|S_b|^2 and <S_b, S> of weights: left (T, B, m), right (T, B, n)."""
    # One buffer (B, m, n) grows from the earliest steps on: a longer window leaves a shorter tail.
    tail = left.new_zeros(left.shape[1], left.shape[2], right.shape[2])
    flat = tail.flatten(1)
    squares, products = [], []
    begin = 0
    for window in reversed(windows):
        part = slice(begin, end := max(begin, T - window))
        if end > begin:
            tail.baddbmm_(left[part].permute(1, 2, 0), right[part].transpose(0, 1))
        begin = end
        squares.append(torch.linalg.vector_norm(flat, dim=1).double().square())
        products.append((flat @ flat.sum(0)).double())
    return torch.stack(squares[::-1]), torch.stack(products[::-1])


class WindowLooks:
    """Takes looks for an `Auto` from within a `ChunkLoop`.

    Args:
        auto: The controller.
        model: The module that is trained; its recurrent layers are watched.
        settle: Called with the window after each look, and gives the window to use: rank 0's where there are several.
    """

    def __init__(
        self, auto: Auto, model: nn.Module, settle: Callable[[int], int] = lambda window: window
    ) -> None:
        self.auto, self.model, self.settle = auto, model, settle
        self.disabled_because = ""
        """Why no look can be taken, in which case the longest window is kept; empty if looks are possible."""
        self._waiting = False
        self._independent: bool | None = None
        """Whether the loss is a sum over sequences; None: not tested yet."""

    def due(self, step: int, number: int, chunks: int) -> bool:
        """Whether to take a look at this chunk. Looks rotate over the chunks of a batch."""
        if self.disabled_because:
            return False
        self._waiting |= self.auto.due(step)
        return self._waiting and number == self.auto.looks % chunks

    def rows(self, batch: Any) -> Tensor:
        """The sequences of a `TimeBatch` for a look; rotates over all of them."""
        count = min(SEQUENCES, batch.B)
        rows: Tensor = (torch.arange(count) + self.auto.looks * count) % batch.B
        return rows

    def look(self, run: Callable[[], Any], step: int) -> Change | None:
        """Take a look. `run()` returns the loss of a chunk with a graph over the horizon."""
        self._waiting, before = False, monotonic()
        try:
            capture = Capture(self.model)
            # A look needs layer runs only; whether the loss mixes sequences is determined once.
            capture.measure_lags, capture.independent = False, self._independent
            with _untouched(self.model), unwatched(self.model), Probe(capture) as seen:
                loss = run()
                weights = [p for p in self.model.parameters() if p.requires_grad]
                torch.autograd.grad(loss, weights, allow_unused=True)
            for one in seen.backward_passes:
                if not one.samples.independent:
                    raise NotSupported(
                        one.samples.said, "Give a fixed window: a bias cannot be proved there."
                    )
            self._independent = True
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
            self.disabled_because = str(error)
            warnings.warn(
                f"The window cannot set itself and stays at {self.auto.window}: {error}",
                stacklevel=2,
            )
            change = None
        self.auto.looked(monotonic() - before)
        return change


class _untouched:
    """Restores random generators and buffers of a module on exit."""

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
