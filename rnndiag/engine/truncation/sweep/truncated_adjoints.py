"""Summed cotangents of truncated gradients, w_s = Σ_u w(u, s) a^{u-s}_s, and the resulting parameter gradients.

An estimator of the gradient that weights the pairs (loss at u, state at s) by w(u, s) is Σ_s (∂s_s/∂θ)^T w_s. The
backward passes of this file compute the w_s, one tensor (T, B, S_p) per part of the state.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from rnndiag.engine.adjoints import Adjoints, state_adjoints
from rnndiag.engine.cells import State
from rnndiag.engine.cpu_buffers import Scratch, empty
from rnndiag.engine.truncation.chains.chain import Chain
from rnndiag.engine.truncation.sweep.parameter_layout import ParameterLayout
from rnndiag.engine.truncation.sweep.products import add_gradients, empty_buffer, right_factors
from rnndiag.engine.truncation.sweep.row_steps import every
from rnndiag.engine.truncation.sweep.step_back import StepBack, step_back


@torch.no_grad()
def total_adjoint(chain: Chain) -> State:
    """δ_t of every part of the chain's state, (T, B, S_p)."""
    if chain.is_stack:
        return tuple(part.squeeze(1) for part in scan(chain))
    link = chain.links[0]
    return state_adjoints(replace(link.run, direct=link.direct), link.diagonal)


@torch.no_grad()
def scan(
    chain: Chain, factors: Tensor | None = None, keep: tuple[bool, ...] | None = None
) -> State:
    """δ_t = e_t + ξ_{t+1} J_{t+1}^T δ_{t+1} for many draws of ξ at once: each part (T, draws, B, S_p).

    Args:
        chain: The chain, prepared.
        factors: ξ, (T, draws) or (T, draws, B): ξ_t scales what crosses from t to t-1. None: 1, one draw.
        keep: Which parts of the state carry a gradient back in time. None: all.
    """
    direct = chain.direct
    draws = 1 if factors is None else factors.shape[1]
    shape = (chain.T, draws, chain.B)
    result = tuple(part.new_zeros(*shape, part.shape[-1]) for part in direct)
    carry: State = tuple(part.new_zeros(*shape[1:], part.shape[-1]) for part in direct)
    scratch = Scratch()
    for t in reversed(range(chain.T)):
        now = tuple(c + part[t] for c, part in zip(carry, direct, strict=True))
        for whole, part in zip(result, now, strict=True):
            whole[t] = part
        _, carry = step_back(chain, slice(t, t + 1), now, gradients=False, scratch=scratch)
        if factors is not None:
            scale = factors[t].to(now[0].dtype)
            scale = scale[:, None, None] if scale.dim() == 1 else scale[..., None]
            carry = tuple(part * scale for part in carry)
        if keep is not None:
            carry = tuple(
                part if kept else torch.zeros_like(part)
                for part, kept in zip(carry, keep, strict=True)
            )
    return result


@torch.no_grad()
def segments(chain: Chain, k1: int, k2: int) -> State:
    """Summed cotangents of (k1, k2) truncation: a backward pass every k1 steps through the last k2.

    All passes are rows of one tensor. Pass j = 1, 2, ... has the losses of steps (j-1) k1 .. j k1 - 1 and ends at step
    j k1 - k2 (steps from 0).
    """
    T = chain.T
    direct = chain.direct
    result = tuple(torch.zeros_like(part) for part in direct)
    passes = -(-T // k1)
    scratch = Scratch()
    carry: State = tuple(part.new_zeros(passes, *part.shape[1:]) for part in direct)
    for i in range(min(k2, passes * k1)):
        first = max(0, -(-(1 + i - k1) // k1))
        last = min(passes, (T + i) // k1)
        if first >= last:
            continue
        where = slice(k1 * (first + 1) - 1 - i, k1 * last - i, k1)
        now = tuple(part[first:last] for part in carry)
        if i < k1:
            now = tuple(c + part[where] for c, part in zip(now, direct, strict=True))
        for whole, part in zip(result, now, strict=True):
            whole[where] += part
        _, back = step_back(chain, where, now, gradients=False, scratch=scratch)
        for part, value in zip(carry, back, strict=True):
            part[first:last] = value
    return result


def gradient_of(
    chain: Chain,
    layout: ParameterLayout,
    cotangents: State,
    groups: int = 1,
    scale: Tensor | None = None,
    adj: Adjoints | None = None,
    scratch: Scratch | None = None,
) -> Tensor:
    """The parameter gradient of summed cotangents, (groups, P).

    Args:
        chain: The chain, prepared.
        layout: Its parameters.
        cotangents: w_s, (T, B, S_p) a part of the state.
        groups: Number of groups of sequences whose gradients are kept apart.
        scale: (T,), a weight for every source step.
        adj: The adjoints of the chain's one layer, if `cotangents` are theirs: spares the pre-activations' cotangents.
        scratch: Buffers to reuse.
    """
    like = chain.direct[0]
    buffer = empty((groups, layout.P), like.dtype, like.device)
    rows = None if scale is None else scale[:, None].expand(chain.T, chain.B)
    if adj is None:
        steps, _ = step_back(chain, every(chain.T), cotangents, carry=False, scratch=scratch)
    else:
        own = (adj.a_ih, adj.a_hh, adj.projected)
        steps = (StepBack(chain.links[0], every(chain.T), cotangents, *own),)
    add_gradients(buffer, right_factors(chain, layout), steps, rows, fresh=True)
    return buffer


def step_gradients(
    chain: Chain, layout: ParameterLayout, cotangents: State
) -> Iterator[tuple[int, Tensor]]:
    """(t, g_t (P,)) from the last step to the first: the gradient's share of each source step."""
    rights = right_factors(chain, layout)
    for t in reversed(range(chain.T)):
        buffer = empty_buffer(chain, layout, 1)
        steps, _ = step_back(chain, slice(t, t + 1), tuple(part[t : t + 1] for part in cotangents))
        add_gradients(buffer, rights, steps)
        yield t, buffer[0]
