"""Ways to run a kernel that must all give the same result: whole, in chunks, one sequence at a time, and so on."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rnndiag.engine.gradcheck.layout import Layout
from rnndiag.engine.gradcheck.nested import Function, Tensors


def lengths_around(chunk: int, steps: int) -> tuple[int, ...]:
    """Lengths at which chunked kernels go wrong: 1, k-1, k, k+1, 2k, an odd one beyond it, and the whole."""
    odd = 2 * chunk + 1 if chunk % 2 == 0 else 2 * chunk + 3
    wanted = {1, chunk - 1, chunk, chunk + 1, 2 * chunk, odd, steps}
    return tuple(sorted(n for n in wanted if 1 <= n <= steps))


def pieces(steps: int, chunk: int) -> list[tuple[int, int]]:
    """Start and stop of consecutive chunks; the last may be shorter."""
    return [(start, min(start + chunk, steps)) for start in range(0, steps, chunk)]


def _plain(tensors: Tensors) -> Tensors:
    """The same tensors, with their gradients made contiguous.

    Joining slices passes strided cotangents to the kernel, which `strided` checks separately.
    """
    for tensor in tensors:
        if tensor.requires_grad and not tensor.is_leaf:
            # A kernel may return None for a gradient of zero.
            tensor.register_hook(
                lambda gradient: gradient if gradient is None else gradient.contiguous()
            )
    return tensors


def in_chunks(function: Function, layout: Layout, chunk: int, first: int | None = None) -> Function:
    """Calls the kernel chunk by chunk, each from the final state of the one before.

    Args:
        function: The kernel.
        layout: Its dimensions.
        chunk: Steps per call.
        first: Steps of the first call, if seams are not to be at multiples of `chunk`.
    """

    def composed(inputs: Tensors, state: Tensors) -> tuple[Tensors, Tensors]:
        steps = inputs[0].shape[layout.time]
        bounds = pieces(steps, chunk)
        if first is not None and first < steps:
            bounds = [
                (0, first),
                *((a + first, b + first) for a, b in pieces(steps - first, chunk)),
            ]
        collected = []
        for start, stop in bounds:
            outputs, state = function(layout.steps(inputs, start, stop), state)
            collected.append(_plain(outputs))
        return tuple(torch.cat(each, layout.time) for each in zip(*collected, strict=True)), state

    return composed


def alone(function: Function, layout: Layout) -> Function:
    """Calls the kernel for each sequence alone."""

    def separate(inputs: Tensors, state: Tensors) -> tuple[Tensors, Tensors]:
        sequences = range(inputs[0].shape[layout.batch])
        results = [
            function(layout.sequence(inputs, b), layout.state_of(state, b)) for b in sequences
        ]
        outputs = zip(*(_plain(outputs) for outputs, _ in results), strict=True)
        joined = tuple(torch.cat(each, layout.batch) for each in outputs)
        return joined, layout.join_states([_plain(final) for _, final in results])

    return separate


def alone_to_length(function: Function, layout: Layout, lengths: Sequence[int]) -> Function:
    """Calls the kernel for each sequence alone, cut to its length: what a call with `lengths` must return.

    Outputs of padded steps are zero. A sequence of length 0 passes its state on.
    """

    def separate(inputs: Tensors, state: Tensors) -> tuple[Tensors, Tensors]:
        padded: list[Tensors] = []
        finals: list[Tensors] = []
        steps = inputs[0].shape[layout.time]
        for b, length in enumerate(lengths):
            own = layout.steps(layout.sequence(inputs, b), 0, max(length, 1))
            outputs, final = function(own, layout.state_of(state, b))
            if not length:
                outputs, final = tuple(y * 0 for y in outputs), layout.state_of(state, b)
            padded.append(tuple(_pad(y, layout.time, steps) for y in _plain(outputs)))
            finals.append(_plain(final))
        joined = tuple(torch.cat(each, layout.batch) for each in zip(*padded, strict=True))
        return joined, layout.join_states(finals)

    return separate


def _pad(tensor: Tensor, dim: int, size: int) -> Tensor:
    """Pad with zeros at the end of `dim`, up to `size`."""
    shape = list(tensor.shape)
    shape[dim] = size - shape[dim]
    return torch.cat([tensor, tensor.new_zeros(shape)], dim) if shape[dim] else tensor


def strided(tensors: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
    """The same tensors stored with their first two dimensions swapped: not contiguous."""
    return tuple(
        t.transpose(0, 1).contiguous().transpose(0, 1) if t is not None and t.ndim > 1 else t
        for t in tensors
    )


def with_padding(inputs: Tensors, layout: Layout, lengths: Sequence[int], shift: int) -> Tensors:
    """Inputs whose padded steps hold values of valid steps: zeros there would hide leaks.

    The values are those of the sequence read backwards, shifted by `shift` steps.
    """
    padded = []
    for x in inputs:
        copy = x.detach().clone()
        for b, length in enumerate(lengths):
            # Selecting one sequence leaves time as dimension 0 in either layout.
            sequence = x.detach().select(layout.batch, b)
            rolled = sequence.flip(0).roll(shift, 0)
            copy.select(layout.batch, b)[length:] = rolled[length:]
        padded.append(copy)
    return tuple(padded)


def valid_steps(like: Tensor, layout: Layout, lengths: Sequence[int]) -> Tensor:
    """One at steps before the end of each sequence, zero at padded ones; broadcasts against inputs and outputs."""
    steps = like.shape[layout.time]
    ends = torch.tensor(list(lengths), device=like.device)
    mask = torch.arange(steps, device=like.device)[:, None] < ends  # (T, B)
    if layout.time == 1:
        mask = mask.T
    return mask.to(like.dtype).reshape(*mask.shape, *[1] * (like.ndim - 2))
