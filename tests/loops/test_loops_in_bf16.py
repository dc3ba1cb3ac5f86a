"""Loops under bfloat16 autocast through the callback: trained to the same weights, and measured as detaching would."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning.pytorch as L
import pytest
import torch
from loops.test_loops_in_fits import recorded
from torch import Tensor, nn

import rnndiag

N, H, T = 3, 6, 6
WITHIN = 0.05
"""Rounding to 8 bits adds up differently where the loop is cut at one step only."""


class Cell(nn.Module):
    """A gated cell of linear layers, with a normalised state that stays in float32."""

    def __init__(self, inputs: int, size: int) -> None:
        super().__init__()
        self.a, self.b, self.norm = (
            *(nn.Linear(inputs, 2 * size), nn.Linear(size, 2 * size)),
            nn.LayerNorm(size),
        )

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        gate, new = (self.a(x) + self.b(h)).chunk(2, -1)
        return self.norm(h + gate.sigmoid() * (new.tanh() - h))


class Loop(L.LightningModule):
    """A loop over cells of one kind."""

    def __init__(self, kind: Any, fed: bool, carried: bool) -> None:
        super().__init__()
        self.fed, self.carried = fed, carried
        self.cell, self.head = kind(N + 1, H), nn.Linear(H, 1)

    def loss(self, x: Tensor, y: Tensor, only: int | None = None, width: int = 0) -> Tensor:
        """The loss; with `only`, that of one step, through the last `width` steps."""
        several = isinstance(self.cell, nn.LSTMCell)
        state: Any = (x.new_zeros(len(x), H),) * (2 if several else 1)
        out, total = x.new_zeros(len(x), 1), x.new_zeros(())
        for t in range(T if only is None else only + 1):
            if only is not None and t == only - width + 1:
                state, out = tuple(part.detach() for part in state), out.detach()
            if self.carried:
                *state, out = rnndiag.carry(*state, out, name="loop")
                state = tuple(state)
            given = torch.cat([x[:, t], out if self.fed else y[:, t]], 1)
            found = self.cell(given, state if several else state[0])
            state = tuple(found) if several else (found,)
            out = self.head(state[0])
            if only is None or t == only:
                total = total + (out.float() - y[:, t]).square().mean()
        return total

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.loss(*batch)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 1e-2)


def by_hand(parameters: list[Tensor], loop: Loop, x: Tensor, y: Tensor, width: int) -> Tensor:
    """The gradient of the parameters through the last `width` steps."""
    total = torch.zeros(sum(value.numel() for value in parameters))
    for t in range(T):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = loop.loss(x, y, t, width)
        found = torch.autograd.grad(loss, parameters, allow_unused=True)
        total += torch.cat(
            [
                torch.zeros(p.numel()) if g is None else g.flatten()
                for p, g in zip(parameters, found, strict=True)
            ]
        )
    return total


@pytest.mark.parametrize("carried", [False, True], ids=["module", "carry"])
@pytest.mark.parametrize("fed", [False, True], ids=["forced", "fed back"])
@pytest.mark.parametrize("kind", [nn.RNNCell, nn.GRUCell, nn.LSTMCell, Cell])
def test_windows_of_a_loop_in_bfloat16_are_those_of_detaching(
    kind: Any, fed: bool, carried: bool, diagnostics: Callable[..., Any]
) -> None:
    made: list[tuple[Loop, Tensor, Tensor]] = []

    class Kept(Loop):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            if batch_idx == 0:
                copy = Loop(kind, fed, False)
                copy.load_state_dict(self.state_dict())
                made.append((copy, *batch))
            return super().training_step(batch, batch_idx)

    run = recorded(lambda: Kept(kind, fed, carried), diagnostics, precision="bf16-mixed")
    recording = run.at(0)
    assert recording.verdict == "exact", recording.reasons
    name = "loop" if carried else "cell"
    found = recording["window_bias", name]
    lags = list(found.coordinates["lag"])
    named = dict(made[-1][0].named_parameters())
    keys = recording["tail_norm", name].coordinates["parameter"]
    own = [named[n] for key in keys for n in (key, f"cell.{key}") if n in named]
    assert len(own) >= 4
    whole = by_hand(own, *made[-1], T)
    for width in range(1, T):
        off = float((by_hand(own, *made[-1], width) - whole).norm() / whole.norm())
        if str(width) in lags:
            assert abs(float(found.values[lags.index(str(width))]) - off) < WITHIN, width
