"""Tasks whose need of memory is known, the nets that are trained on them, and what memory_need says of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

import rnndiag

IGNORED = -100
KINDS: dict[str, type[nn.RNNBase]] = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}
Batch = dict[str, Tensor]
Draw = Callable[[torch.Generator], Batch]


class Net(nn.Module):
    """A recurrent layer and a linear head on all outputs, or on the last."""

    def __init__(
        self,
        kind: str,
        inputs: int,
        outputs: int,
        hidden: int = 24,
        last: bool = False,
        layers: int = 1,
    ) -> None:
        super().__init__()
        self.rnn = KINDS[kind](inputs, hidden, layers, batch_first=True)
        self.head = nn.Linear(hidden, outputs)
        self.last = last

    def forward(self, x: Tensor, state: object = None) -> tuple[Tensor, object]:
        y, state = self.rnn(x, state)
        return self.head(y[:, -1:] if self.last else y), state


def loss_fn(model: nn.Module, batch: Batch) -> Tensor:
    """Cross-entropy of whole-number targets, squared error of others."""
    return loss_of(model(batch["x"])[0], batch["y"])


def loss_of(out: Tensor, target: Tensor) -> Tensor:
    """The same, of the head's output (B, T, O)."""
    if target.is_floating_point():
        return (out.squeeze(-1) - target).square().mean()
    return functional.cross_entropy(out.flatten(0, 1), target.flatten(), ignore_index=IGNORED)


def train(
    model: Net, draw: Draw, steps: int, window: int | None, seed: int, decay: float = 0.0
) -> None:
    """AdamW with clipping; the state is detached after every `window` steps."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), 5e-3, weight_decay=decay)
    for _ in range(steps):
        batch, outs, state = draw(generator), [], None
        for piece in batch["x"].split(window or batch["x"].shape[1], 1):
            out, state = model(piece, state)
            state = tuple(s.detach() for s in state) if isinstance(state, tuple) else state.detach()
            outs.append(out)
        loss = loss_of(outs[-1] if model.last else torch.cat(outs, 1), batch["y"])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()


# Tasks. Each returns a function that draws one batch of `batch` sequences.


def copy(
    lag: int,
    symbols: int = 2,
    share: float = 0.5,
    product: bool = False,
    steps: int = 30,
    batch: int = 32,
) -> Draw:
    """The target is the symbol `lag` steps back, or its sum with the present one, modulo the number of symbols."""

    def draw(generator: torch.Generator) -> Batch:
        drawn = torch.randint(0, symbols, (batch, steps), generator=generator)
        if share != 0.5:
            drawn = (torch.rand(batch, steps, generator=generator) < share).long()
        target = torch.full_like(drawn, IGNORED)
        target[:, lag:] = drawn[:, : steps - lag]
        if product:
            target[:, lag:] = (target[:, lag:] + drawn[:, lag:]) % symbols
        return {"x": functional.one_hot(drawn, symbols).float(), "y": target}

    return draw


def autoregressive(weights: dict[int, float], steps: int = 40, batch: int = 32) -> Draw:
    """x_t = Σ weights[p] x_(t-p) + noise of variance 1; the target is the next input."""
    longest = max(weights)

    def draw(generator: torch.Generator) -> Batch:
        start = 10 * longest
        x = torch.randn(batch, steps + 1 + start, generator=generator)
        for t in range(longest, x.shape[1]):
            for lag, weight in weights.items():
                x[:, t] += weight * x[:, t - lag]
        x = x[:, start:]
        return {"x": x[:, :-1, None], "y": x[:, 1:]}

    return draw


def seasonal(period: int, steps: int = 40) -> Draw:
    """A repeating pattern that differs between sequences, with noise; the target is the next value."""

    def draw(generator: torch.Generator) -> Batch:
        pattern = torch.randn(32, period, generator=generator)
        phase = torch.randint(0, period, (32, 1), generator=generator)
        place = (torch.arange(steps + 1) + phase) % period
        x = pattern.gather(1, place) + 0.3 * torch.randn(32, steps + 1, generator=generator)
        return {"x": x[:, :-1, None], "y": x[:, 1:]}

    return draw


def delayed(lag: int, product: bool = False, rho: float = 0.0, steps: int = 30) -> Draw:
    """Squared error against x_(t-lag), or its product with x_t, and noise; x is white or AR(1)."""

    def draw(generator: torch.Generator) -> Batch:
        x = torch.randn(32, steps, generator=generator)
        for t in range(1, steps):
            x[:, t] = rho * x[:, t - 1] + math.sqrt(1 - rho**2) * x[:, t]
        past = functional.pad(x, (lag, 0))[:, :steps]
        y = past * x if product else past
        return {"x": x[..., None], "y": y + 0.3 * torch.randn(32, steps, generator=generator)}

    return draw


def noise(
    classes: int | None, rho: float = 0.0, steps: int = 25, batch: int = 32, heavy: bool = False
) -> Draw:
    """Targets that have nothing to do with the inputs (AR(1) with weight rho); None: real ones, cubed if heavy."""

    def draw(generator: torch.Generator) -> Batch:
        x = torch.randn(batch, steps, 2, generator=generator)
        for t in range(1, steps):
            x[:, t] = rho * x[:, t - 1] + math.sqrt(1 - rho**2) * x[:, t]
        if classes is None:
            y = torch.randn(batch, steps, generator=generator)
            return {"x": x, "y": (y**3 if heavy else y)}
        return {"x": x, "y": torch.randint(0, classes, (batch, steps), generator=generator)}

    return draw


def sine_of_now(rho: float, steps: int = 30) -> Draw:
    """Squared error against sin(2 x_t) and noise; x is AR(1), so that the past is a proxy for the present."""

    def draw(generator: torch.Generator) -> Batch:
        x = torch.randn(32, steps, generator=generator)
        for t in range(1, steps):
            x[:, t] = rho * x[:, t - 1] + math.sqrt(1 - rho**2) * x[:, t]
        y = torch.sin(2 * x) + 0.3 * torch.randn(32, steps, generator=generator)
        return {"x": x[..., None], "y": y}

    return draw


def adding(steps: int = 20) -> Draw:
    """One output a sequence: the sum of the two numbers that are marked."""

    def draw(generator: torch.Generator) -> Batch:
        values = torch.rand(32, steps, generator=generator)
        marks = torch.zeros(32, steps)
        half = steps // 2
        for low in (0, half):
            place = torch.randint(low, low + half, (32, 1), generator=generator)
            marks.scatter_(1, place, 1.0)
        return {"x": torch.stack([values, marks], -1), "y": (values * marks).sum(1, keepdim=True)}

    return draw


def cue(
    steps: int, classes: int = 3, place: int = 0, batch: int = 32, shuffled: bool = False
) -> Draw:
    """One output a sequence: the class that the input at `place` showed, or one that no input tells."""

    def draw(generator: torch.Generator) -> Batch:
        drawn = torch.randint(0, classes, (batch,), generator=generator)
        x = 0.3 * torch.randn(batch, steps, classes, generator=generator)
        x[:, place] += 3 * functional.one_hot(drawn, classes)
        if shuffled:
            drawn = torch.randint(0, classes, (batch,), generator=generator)
        return {"x": x, "y": drawn[:, None]}

    return draw


def parity(lags: tuple[int, ...], steps: int = 30) -> Draw:
    """The target is the parity of the bits at some lags, with the present one."""

    def draw(generator: torch.Generator) -> Batch:
        drawn = torch.randint(0, 2, (32, steps), generator=generator)
        longest = max(lags)
        target = torch.full_like(drawn, IGNORED)
        target[:, longest:] = sum(drawn[:, longest - d : steps - d] for d in (0, *lags)) % 2
        return {"x": functional.one_hot(drawn, 2).float(), "y": target}

    return draw


@dataclass(frozen=True)
class Case:
    """A task, how it is trained, the limit asked about, and the verdicts that are right."""

    name: str
    draw: Draw
    inputs: int
    outputs: int
    steps: int
    window: int | None
    beyond: int
    right: tuple[str, ...] = ()
    last: bool = False
    batches: int = 12
    layers: int = 1
    decay: float = 0.0
    """Weight decay."""


BEYOND, NOTHING, SOLVED = ("needed_beyond",), ("nothing_found",), ("solved",)

DEVELOPED = (
    Case("copy 9 of 3, window 4", copy(9, 3), 3, 3, 300, 4, 4, BEYOND),
    Case("copy 5, window 2", copy(5), 2, 2, 300, 2, 2, BEYOND),
    Case("xor 0 and 8, window 4", copy(8, product=True), 2, 2, 300, 4, 4, BEYOND),
    Case("rare 10 %, lag 6, window 3", copy(6, 2, 0.1), 2, 2, 300, 3, 3, BEYOND),
    Case("AR(6) -.5, window 2", autoregressive({6: -0.5}), 1, 1, 400, 2, 2, BEYOND),
    Case("cue 18, window 4", cue(19), 3, 3, 60, 4, 4, BEYOND, True, 16),
    Case("noise, squared error", noise(None), 2, 1, 200, None, 5, NOTHING),
    Case("noise, cross-entropy", noise(2), 2, 2, 60, None, 5, NOTHING),
    Case("AR(2) .5, whole", autoregressive({2: 0.5}, 30), 1, 1, 700, None, 8, NOTHING),
    Case("copy 2, solved", copy(2), 2, 2, 700, None, 5, SOLVED),
)
"""Cases that the rules were tried on while they were written."""

UNSEEN = (
    Case("copy 7 of 4, window 3", copy(7, 4), 4, 4, 300, 3, 3, BEYOND),
    Case("sum of 0 and 9 mod 3, window 4", copy(9, 3, product=True), 3, 3, 300, 4, 4, BEYOND),
    Case("pattern of period 12, window 4", seasonal(12), 1, 1, 300, 4, 4, BEYOND),
    Case("x at lag 8, squared error, window 3", delayed(8), 1, 1, 300, 3, 3, BEYOND),
    Case("x_t x_(t-6), squared error, window 2", delayed(6, True), 1, 1, 300, 2, 2, BEYOND),
    Case("AR .4 at 1, -.5 at 11, window 4", autoregressive({1: 0.4, 11: -0.5}), 1, 1, 400, 4, 4, BEYOND),
    Case("cue 12 of 5, window 4", cue(15, 5, 2), 5, 5, 60, 4, 4, BEYOND, True, 16),
    Case("parity of 0 and 5, window 2", parity((5,)), 2, 2, 300, 2, 2, BEYOND),
    Case("copy 4, window 2, asked beyond 8", copy(4, 3), 3, 3, 300, 2, 8, ("needed_within", "readout")),
    Case("AR(3) .4, whole", autoregressive({1: 0.3, 3: 0.4}, 30), 1, 1, 700, None, 8, NOTHING),
    Case("noise, AR(1) inputs", noise(None, 0.8), 2, 1, 150, None, 5, NOTHING),
    Case("noise of 4 classes", noise(4), 2, 4, 60, None, 6, NOTHING),
    Case("copy 3 of 3, solved", copy(3, 3), 3, 3, 900, None, 6, SOLVED),
    Case("cue 8 of 4, solved", cue(9, 4), 4, 4, 500, None, 5, SOLVED, True, 16),
)  # fmt: skip
"""Cases that no rule was tried on."""


def trained(case: Case, kind: str, seed: int) -> Net:
    """A net trained on a case."""
    torch.manual_seed(seed)
    model = Net(kind, case.inputs, case.outputs, last=case.last, layers=case.layers)
    train(model, case.draw, case.steps, case.window, seed, case.decay)
    return model


def held_out(case: Case, seed: int) -> list[Batch]:
    """Batches that the net was not trained on."""
    generator = torch.Generator().manual_seed(10_000 + seed)
    return [case.draw(generator) for _ in range(case.batches)]


def measured(
    case: Case, kind: str, seed: int, model: nn.Module | None = None
) -> rnndiag.MemoryNeed:
    """Train and measure."""
    model = trained(case, kind, seed) if model is None else model
    return rnndiag.memory_need(model, held_out(case, seed), loss_fn, beyond=case.beyond, seed=seed)
