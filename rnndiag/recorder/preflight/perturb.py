"""Batches that differ from the given one in one respect: one sample, the steps before or after t, or the padding."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rnndiag.recorder.nested import map_tensors
from rnndiag.recorder.preflight.layout import IGNORED, BatchLayout


def other_content(tensor: Tensor, layout: BatchLayout) -> Tensor:
    """The tensor with other content of the same kind everywhere: numbers with noise, tokens from other positions."""
    rolled = tensor.roll(1, layout.batch_dim)
    if tensor.is_floating_point() or tensor.is_complex():
        spread = (
            tensor.detach().double().std()
            if tensor.is_floating_point() and tensor.numel() > 1
            else None
        )
        scale = 1.0 if spread is None or not bool(spread > 0) else float(spread)
        return rolled + scale * torch.randn_like(tensor)
    shifted = rolled.roll(1, layout.time_dim) if tensor.ndim >= 2 else rolled
    return torch.where(rolled == tensor, shifted, rolled)


def of_sample(batch: Any, layout: BatchLayout, sample: int) -> Any:
    """One sample's data replaced; masks, lengths and labels stay."""

    def change(tensor: Tensor, path: str) -> Tensor:
        if not layout.has_samples(tensor) or tensor.dtype == torch.bool:
            return tensor
        return _spliced(
            tensor, other_content(tensor, layout), _at(layout.batch_dim, sample, sample + 1)
        )

    return map_tensors(batch, change, padded=True)


def of_steps(batch: Any, layout: BatchLayout, first: int, last: int) -> Any:
    """The data of steps first .. last - 1 replaced in every sample."""

    def change(tensor: Tensor, path: str) -> Tensor:
        if not layout.has_time(tensor) or tensor.dtype == torch.bool:
            return tensor
        return _spliced(tensor, other_content(tensor, layout), _at(layout.time_dim, first, last))

    return map_tensors(batch, change, padded=True)


def of_tensor(batch: Any, layout: BatchLayout, chosen: str) -> Any:
    """All data of one tensor replaced."""

    def change(tensor: Tensor, path: str) -> Tensor:
        return other_content(tensor, layout) if path == chosen else tensor

    return map_tensors(batch, change, padded=True)


def of_padding(batch: Any, layout: BatchLayout, padding: Tensor, inputs: set[str]) -> Any:
    """The padded steps (N, T) of the input tensors replaced by noise, or by tokens that occur in valid steps."""
    mask = padding if layout.batch_dim == 0 else padding.T

    def change(tensor: Tensor, path: str) -> Tensor:
        if path not in inputs or not layout.has_time(tensor) or tensor.dtype == torch.bool:
            return tensor
        where = mask.to(tensor.device)
        new = tensor.clone()
        if tensor.is_floating_point():
            new[where] = new[where] + 1.0 + torch.randn_like(new[where])
            return new
        real = tensor[~where].reshape(-1)
        real = real[real != IGNORED]
        if len(real):
            drawn = torch.randint(len(real), new[where].shape, device="cpu").to(tensor.device)
            new[where] = real[drawn]
        return new

    return map_tensors(batch, change, padded=True)


def _at(dim: int, first: int, last: int) -> tuple[slice, ...]:
    return (*[slice(None)] * dim, slice(first, last))


def _spliced(tensor: Tensor, other: Tensor, at: tuple[slice, ...]) -> Tensor:
    new = tensor.clone()
    new[at] = other[at]
    return new
