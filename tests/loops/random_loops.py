"""Random programs that loop over cells, and their windows by detaching the state by hand."""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import Tensor, nn

B, H = 3, 4

CHANCES = {
    "feedback": 0.3,
    "topdown": 0.2,
    "scale": 0.25,
    "norm": 0.15,
    "skip": 0.15,
    "mix": 0.15,
    "hold": 0.1,
    "detach_part": 0.15,
    "hook": 0.25,
    "hook_on_c": 0.1,
    "reset": 0.2,
    "dropout": 0.15,
    "residual": 0.1,
    "average": 0.1,
    "read_previous": 0.08,
    "detach_between": 0.1,
    "permute": 0.1,
    "penalty": 0.08,
}
"""How often a program has each feature."""

State = dict[str, Tensor]


class OwnCell(nn.Module):
    """A cell that no registry knows."""

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(inputs, hidden), nn.Linear(hidden, hidden)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return (self.a(x) + self.b(h)).tanh()


KINDS: dict[str, Any] = {
    "gru": nn.GRUCell,
    "lstm": nn.LSTMCell,
    "rnn": nn.RNNCell,
    "own": OwnCell,
}


class RandomLoop(nn.Module):
    """One to three cells above one another, the features drawn by the seed."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        draw = random.Random(seed)
        self.T = draw.randint(3, 8)
        self.kinds = [draw.choice(list(KINDS)) for _ in range(draw.choice([1, 1, 1, 2, 2, 3]))]
        self.loss = draw.choice(["end", "each", "some"])
        self.on = {name for name, chance in CHANCES.items() if draw.random() < chance}
        if self.loss == "end" or (self.loss == "some" and self.T == 3):
            # what one loss at the end reads of two steps is read where it stands, as by a layer above
            self.on -= {"read_previous", "penalty"}
        self.every, self.layer = draw.choice([1, 2, 3]), draw.randrange(len(self.kinds))
        torch.manual_seed(seed)
        sizes = [3 + 1 + H, *[H] * (len(self.kinds) - 1)]
        self.cells = nn.ModuleList(KINDS[k](n, H) for k, n in zip(self.kinds, sizes, strict=True))
        self.head, self.norm = nn.Linear(H, 1), nn.LayerNorm(H)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.mul_(1.5)
        own = torch.Generator().manual_seed(seed)
        self.x, self.y = (torch.randn(self.T, B, n, generator=own) for n in (3, 1))
        self.masks = (torch.rand(self.T, B, H, generator=own) < 0.6).to(self.x)
        self.keeps = (torch.rand(self.T, B, 1, generator=own) < 0.7).to(self.x)
        self.top = f"h{len(self.kinds) - 1}"

    def start(self) -> State:
        names = [f"h{k}" for k in range(len(self.kinds))]
        names += [f"c{k}" for k, kind in enumerate(self.kinds) if kind == "lstm"]
        names += ["p1", "p2"] if "skip" in self.on else []
        names += ["average"] if "average" in self.on else []
        state = {name: torch.zeros(B, H) for name in names}
        return {**state, "y": torch.zeros(B, 1)} if "feedback" in self.on else state

    def step(self, t: int, old: State) -> tuple[State, Tensor]:
        on, new, layer = self.on, {}, self.layer
        fed = old["y"] if "feedback" in on else torch.zeros(B, 1)
        down = old[self.top] if "topdown" in on else torch.zeros(B, H)
        x = torch.cat([self.x[t], fed, down], -1)
        for k in range(len(self.kinds)):
            h, c = old[f"h{k}"], old.get(f"c{k}")
            if k == layer:
                h, c = self.before(t, h, c, old)
            found = self.cells[k](x, h if c is None else (h, c))
            after, c = (found, None) if c is None else found
            h = self.behind(t, after, c, h) if k == layer else after
            new[f"h{k}"] = h
            if c is not None:
                new[f"c{k}"] = c
            x = h.detach() if "detach_between" in on and k == layer else h
        if "skip" in on:
            new |= {"p1": old[f"h{layer}"], "p2": old["p1"]}
        read = new[self.top]
        if "average" in on:
            read = new["average"] = 0.7 * old["average"] + 0.3 * read
        if "read_previous" in on:
            read = read + 0.5 * old[self.top]
        y = self.head(read)
        return ({**new, "y": y} if "feedback" in on else new), y

    def before(self, t: int, h: Tensor, c: Any, old: State) -> tuple[Tensor, Any]:
        on = self.on
        if "reset" in on:
            h, c = h * self.keeps[t], None if c is None else c * self.keeps[t]
        if "dropout" in on:
            h = h * self.masks[t]
        if "detach_part" in on and c is not None:
            h = h.detach()
        return (h + 0.3 * old["p2"] if "skip" in on else h), c

    def behind(self, t: int, h: Tensor, c: Any, before: Tensor) -> Tensor:
        on, now = self.on, t % self.every == 0
        if "hook" in on and h.requires_grad:
            h.register_hook(lambda gradient: gradient * 0.6)
        if "hook_on_c" in on and c is not None and c.requires_grad:
            c.register_hook(lambda gradient: gradient * 1.2)
        h = h * 0.8 if "scale" in on and now else h
        h = self.norm(h) if "norm" in on and now else h
        h = 0.3 * before + 0.7 * h if "mix" in on else h
        h = torch.where(self.keeps[t] > 0, h, before) if "hold" in on else h
        h = h + before * 0.5 if "residual" in on else h
        return h[torch.tensor([1, 2, 0])] if "permute" in on else h

    def reads(self, t: int) -> bool:
        return t == self.T - 1 or self.loss == "each" or (self.loss == "some" and t % 2 == 0)

    def run(self, cut: int | None = None, only: int | None = None, carry: Any = None) -> Tensor:
        """The loss; of one step only, with the whole state detached so that it reaches `cut` steps."""
        state, total = self.start(), torch.zeros(())
        last = self.T - 1 if only is None else only
        for t in range(last + 1):
            if cut is not None and t == last - cut + 1:
                state = {name: part.detach() for name, part in state.items()}
            if carry is not None:
                state = carry(state, name="loop")
            before = state
            state, y = self.step(t, state)
            if self.reads(t) if only is None else t == last:
                total = total + (y - self.y[t]).square().mean()
                if "penalty" in self.on and t:
                    total = total + 0.1 * (state["h0"] - before["h0"]).square().mean()
        return total

    def window(self, width: int, parameters: list[Tensor]) -> Tensor:
        """The gradient of a window of so many steps, by detaching by hand."""
        total = [torch.zeros_like(value) for value in parameters]
        for t in filter(self.reads, range(self.T)):
            loss = self.run(cut=width, only=t)
            if loss.requires_grad:
                found = torch.autograd.grad(loss, parameters, allow_unused=True)
                total = [a if g is None else a + g for a, g in zip(total, found, strict=True)]
        return torch.cat([value.flatten() for value in total])
