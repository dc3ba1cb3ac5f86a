"""A chunked gated scan with a backward pass written by hand, and bugs that can be planted in it one by one.

    a_t = sigmoid(z_t + decay),  h_t = a_t h_{t-1} + (1 - a_t) u_t,  with [z_t; u_t] = W x_t

Inputs are (T, B, I), the state is (B, H). Every bug but those of the forward pass leaves the values right, as the
silent bugs of published kernels do.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

Grads = tuple[Tensor | None, ...]


class Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, h0: Tensor, w: Tensor, decay: Tensor, op: PlantedScan) -> Any:
        bug, chunk = op.bug, op.chunk
        if bug == "reads strided inputs as contiguous":
            x = x.as_strided(x.shape, (x.shape[1] * x.shape[2], x.shape[2], 1))
        z, u = (x @ w.T).chunk(2, -1)
        if bug == "gates swapped in the forward pass":
            z, u = u, z
        a = torch.sigmoid(z + decay)
        h, states = h0, []
        for t in range(len(x)):
            if bug == "half-precision state between chunks" and t and t % chunk == 0:
                h = h.half().to(h.dtype)
            if bug == "bfloat16 state between chunks" and t and t % chunk == 0:
                h = h.bfloat16().to(h.dtype)
            if bug == "writes into the initial state":
                h = h0.mul_(a[t]).add_((1 - a[t]) * u[t])
                states.append(h.clone())
                continue
            h = a[t] * h + (1 - a[t]) * u[t]
            states.append(h)
        hs = torch.stack(states)
        before = torch.cat([op.initial.pop()[None] if op.initial else h0[None], hs[:-1]])
        ctx.save_for_backward(x, w, a, u, before, hs)
        # Not by save_for_backward, where autograd itself would find the write.
        ctx.op, ctx.gate = op, a
        ctx.set_materialize_grads(False)
        if bug == "refuses odd lengths" and len(x) % 2:
            raise ValueError("the length must be even")
        final = hs[-1].clone()
        if bug == "one buffer for all final states":
            op.buffer = (
                final
                if op.buffer is None
                or op.buffer.dtype != final.dtype
                or op.buffer.shape != final.shape
                else op.buffer
            )
            op.buffer.data.copy_(final)
            final = op.buffer.detach()
        return hs, final

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, dfinal: Tensor | None) -> Any:
        x, w, _, u, before, hs = ctx.saved_tensors
        a = ctx.gate
        op: PlantedScan = ctx.op
        bug, chunk, steps = op.bug, op.chunk, len(x)
        if bug == "reads strided cotangents as contiguous" and dy is not None:
            dy = dy.as_strided(dy.shape, (dy.shape[1] * dy.shape[2], dy.shape[2], 1))
        if bug == "one cotangent at a time" and dfinal is not None:
            dy = None
        if bug == "final state's cotangent dropped" or dfinal is None:
            dfinal = torch.zeros_like(hs[-1])
        if dy is None:
            dy = torch.zeros_like(hs)
        delta, dz, du = dfinal, torch.empty_like(a), torch.empty_like(a)
        last_partial = steps - steps % chunk
        for t in reversed(range(steps)):
            delta = delta + dy[t]
            h_before = before[t]
            if bug == "decay's gradient one lag off":
                h_before = hs[t]
            if (
                bug == "initial state left out where it needs no gradient"
                and t == 0
                and not ctx.needs_input_grad[1]
            ):
                h_before = torch.zeros_like(h_before)
            dz[t] = delta * (h_before - u[t]) * a[t] * (1 - a[t])
            du[t] = delta * (1 - a[t])
            if bug == "last partial chunk scaled" and t >= last_partial:
                dz[t], du[t] = 2 * dz[t], 2 * du[t]
            if bug == "first step of every chunk lost" and t % chunk == 0:
                dz[t], du[t] = 0, 0
            if bug == "not finite in the last partial chunk" and t >= last_partial:
                du[t] = float("nan")
            delta = delta * a[t]
            if bug == "internal seams cut" and t and t % chunk == 0:
                delta = torch.zeros_like(delta)
        dpre = torch.cat([du, dz] if bug == "gate order in the backward pass" else [dz, du], -1)
        if bug == "wrong for odd lengths" and steps % 2:
            dpre = dpre * 1.01
        if bug == "wrong for more than one sequence" and x.shape[1] > 1:
            dpre = dpre.index_fill(1, torch.tensor([1]), 0.0)
        dx = dpre @ w
        own = (
            dpre[-(steps % chunk or chunk) :]
            if bug == "gradient of chunks not accumulated"
            else dpre
        )
        dw = own.flatten(0, 1).T @ x[-len(own) :].flatten(0, 1)
        ddecay = dz.sum((0, 1))
        if bug == "lag 1 of the decay lost":
            ddecay = ddecay - _lag(op, 1, dy, dfinal, a, before, u)
        dh0 = torch.zeros_like(delta) if bug == "initial state's gradient missing" else delta
        if bug == "no gradient for the initial state":
            dh0 = None
        if bug == "gradient changes from call to call":
            dw = dw * (1 + 1e-2 * torch.rand(()))
        if bug == "backward writes into what was saved":
            ctx.gate.data.mul_(0.5)
        if bug == "one gradient buffer for all calls":
            same = op.buffer is not None and op.buffer.dtype == dw.dtype
            op.buffer = op.buffer.copy_(dw) if same else dw
            dw = op.buffer
        return dx, dh0, dw, ddecay, None


def _lag(
    op: PlantedScan, lag: int, dy: Tensor, dfinal: Tensor, a: Tensor, before: Tensor, u: Tensor
) -> Tensor:
    """The part of the decay's gradient that comes from losses `lag` steps later."""
    e = dy.clone()
    e[-1] = e[-1] + dfinal
    total = torch.zeros_like(a[0, 0])
    for t in range(len(a) - lag):
        delta = e[t + lag] * a[t + 1 : t + lag + 1].prod(0)
        total = total + (delta * (before[t] - u[t]) * a[t] * (1 - a[t])).sum(0)
    return total


class PlantedScan(nn.Module):
    """The kernel: (inputs (T, B, I), state (B, H)) -> (outputs (T, B, H), final state)."""

    def __init__(self, bug: str = "", chunk: int = 8, inputs: int = 3, units: int = 4) -> None:
        super().__init__()
        self.bug, self.chunk = bug, chunk
        self.weight = nn.Parameter(torch.randn(2 * units, inputs) / 2)
        self.decay = nn.Parameter(torch.ones(units))
        self.buffer: Tensor | None = None
        self.initial: list[Tensor] = []

    def forward(
        self, x: Tensor, h0: Tensor, lengths: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        if self.bug == "writes into the initial state":
            self.initial = [h0.detach().clone()]
        if lengths is None:
            return Scan.apply(x, h0, self.weight, self.decay, self)
        if self.bug == "cut at the wrong length":
            lengths = (lengths + 1).clamp(max=len(x))
        valid = (torch.arange(len(x))[:, None] < lengths)[..., None]  # (T, B, 1)
        outputs, final = Scan.apply(x, h0, self.weight, self.decay, self)
        at_end = outputs.gather(
            0, (lengths - 1).clamp(min=0)[None, :, None].expand(1, -1, outputs.shape[-1])
        )[0]
        if self.bug == "padding leaks into the final state":
            at_end = final
        final = torch.where((lengths > 0)[:, None], at_end, h0)
        if self.bug == "padding leaks into the outputs":
            outputs = outputs + 0.1 * x[-1].sum(-1)[None, :, None]
        return outputs * valid, final


def loop(kernel: PlantedScan) -> Any:
    """The same function as a plain loop over the kernel's own parameters, differentiated by autograd."""

    def reference(x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        outputs = []
        for t in range(len(x)):
            z, u = (x[t] @ kernel.weight.T).chunk(2, -1)
            a = torch.sigmoid(z + kernel.decay)
            h = a * h + (1 - a) * u
            outputs.append(h)
        return torch.stack(outputs), h

    return reference
