"""Determines which dims of a batch are samples and time, and the lengths of its sequences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from rnndiag.errors import BadArgument
from rnndiag.recorder.nested import named_tensors

IGNORED = -100
"""torch's default value for targets to ignore."""


@dataclass(frozen=True)
class BatchLayout:
    """The dims of the batch's tensors: `samples` along `batch_dim`, `steps` along `time_dim`."""

    batch_dim: int
    samples: int
    steps: int
    assumed: bool
    """Whether the batch did not tell the two dims apart, so that dim 0 was assumed to be the samples."""
    lengths: Tensor | None
    """(N,) number of valid steps of each sequence, if known."""
    lengths_from: str = ""

    @property
    def time_dim(self) -> int:
        """The dim along which time runs."""
        return 1 - self.batch_dim

    def has_samples(self, tensor: Tensor) -> bool:
        """Whether the tensor has one entry per sample, with more than one number each."""
        return tensor.ndim >= 2 and tensor.shape[self.batch_dim] == self.samples

    def has_time(self, tensor: Tensor) -> bool:
        """Whether the tensor has one entry per sample and step."""
        return self.has_samples(tensor) and tensor.shape[self.time_dim] == self.steps

    def padding(self) -> Tensor | None:
        """(N, T) bool: padded steps; None if there are none."""
        if self.lengths is None or bool((self.lengths >= self.steps).all()):
            return None
        return torch.arange(self.steps)[None, :] >= self.lengths.cpu()[:, None]


def layout_of(
    batch: Any, batch_dim: int | None, lengths: Tensor | Sequence[int] | None
) -> BatchLayout:
    """Determine the layout from the batch; `batch_dim` and `lengths` override it."""
    found = named_tensors(batch, padded=True)
    wide = [tensor for _, tensor in found if tensor.ndim >= 2]
    if not wide:
        raise BadArgument(
            "The batch holds no tensor with samples and steps.",
            "Give a batch as the training step gets it.",
        )
    if batch_dim not in (None, 0, 1):
        raise BadArgument(
            f"batch_dim is {batch_dim}.", "It is 0 (samples first) or 1 (time first)."
        )
    main = max(wide, key=lambda tensor: (tensor.ndim, tensor.numel()))
    dim, assumed = (batch_dim, False) if batch_dim is not None else _batch_dim(batch, found, main)
    samples, steps = int(main.shape[dim]), int(main.shape[1 - dim])
    known = BatchLayout(dim, samples, steps, assumed, None)
    if lengths is not None:
        given = torch.as_tensor(lengths).reshape(-1)
        if len(given) != samples:
            raise BadArgument(
                f"{len(given)} lengths were given for {samples} samples.", "Give one a sample."
            )
        return BatchLayout(dim, samples, steps, assumed, given, "the lengths given")
    lengths, source = _lengths(found, known)
    return BatchLayout(dim, samples, steps, assumed, lengths, source)


def confirmed_by_loader(layout: BatchLayout, batch_size: int | None) -> BatchLayout:
    """The layout, no longer assumed, if exactly one dim has the size of the loader's batches."""
    if not layout.assumed or batch_size is None or layout.samples == layout.steps:
        return layout
    if batch_size == layout.samples:
        return replace(layout, assumed=False)
    if batch_size == layout.steps:
        samples, steps = layout.steps, layout.samples
        return BatchLayout(1 - layout.batch_dim, samples, steps, False, None)
    return layout


def _batch_dim(batch: Any, found: list[tuple[str, Tensor]], main: Tensor) -> tuple[int, bool]:
    """The dim of the samples, and whether it was assumed: found by a tensor with one number per sample, else dim 0."""
    if isinstance(batch, PackedSequence):
        return 0, False
    singles = {int(tensor.shape[0]) for _, tensor in found if tensor.ndim == 1}
    first, second = int(main.shape[0]), int(main.shape[1])
    if first != second and (first in singles) != (second in singles):
        return (0 if first in singles else 1), False
    return 0, True


def _lengths(found: list[tuple[str, Tensor]], layout: BatchLayout) -> tuple[Tensor | None, str]:
    """Lengths in the batch and their source: a vector, a mask, or targets marked as ignored."""
    data = [tensor for _, tensor in found if layout.has_time(tensor) and tensor.dtype != torch.bool]
    for path, tensor in found:
        if _could_be_lengths(tensor, layout) and (
            "len" in path.rpartition(".")[2].lower() or _ends_agree(tensor, data, layout)
        ):
            return tensor.reshape(-1), f"{_named(path)} of the batch"
    for path, tensor in found:
        if not (layout.has_time(tensor) and tensor.ndim == 2):
            continue
        rows = tensor if layout.batch_dim == 0 else tensor.T
        if tensor.dtype == torch.bool:
            for real in (rows, ~rows):
                counts = real.sum(1)
                if bool(real[:, 0].all()) and bool((_prefix(counts, layout) == real.cpu()).all()):
                    return counts, f"the mask in {_named(path)} of the batch"
        elif not tensor.is_floating_point() and bool((rows == IGNORED).any()):
            counts = (rows != IGNORED).sum(1)
            if bool((_prefix(counts, layout) == (rows != IGNORED).cpu()).all()):
                return counts, f"the targets in {_named(path)} that are {IGNORED}"
    return None, ""


def _could_be_lengths(tensor: Tensor, layout: BatchLayout) -> bool:
    integers = (
        not tensor.is_floating_point() and not tensor.is_complex() and tensor.dtype != torch.bool
    )
    if not integers or tensor.ndim != 1 or len(tensor) != layout.samples:
        return False
    return (
        bool((tensor >= 1).all())
        and bool((tensor <= layout.steps).all())
        and len(tensor.unique()) > 1
    )


def _ends_agree(lengths: Tensor, data: list[Tensor], layout: BatchLayout) -> bool:
    """Whether some data are constant after each sequence's length, which confirms that the numbers are lengths."""
    padding = _prefix(lengths, layout).logical_not()
    for tensor in data:
        rows = (tensor if layout.batch_dim == 0 else tensor.transpose(0, 1)).detach().cpu()
        ends = rows[padding]
        if ends.numel() and bool((ends == ends.reshape(-1)[0]).all()):
            return True
    return False


def _prefix(counts: Tensor, layout: BatchLayout) -> Tensor:
    """(N, T) bool: True in the first counts[n] steps of sample n."""
    return torch.arange(layout.steps)[None, :] < counts.cpu()[:, None]


def _named(path: str) -> str:
    return f"entry {path}" if path else "the only tensor"
