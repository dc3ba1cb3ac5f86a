"""Truncated BPTT in any training loop: backward passes and optimizer steps of plain torch, as one function."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from rnndiag.errors import BadArgument
from rnndiag.train.chunk_loop import BatchResult, ChunkLoop, TBPTTStep, Update

Optimizers = torch.optim.Optimizer | Sequence[torch.optim.Optimizer] | None


class PlainUpdates:
    """Updates of a `ChunkLoop` without a framework.

    Args:
        optimizer: One, several (all of them step), or None: gradients are left in `.grad`.
        clip: Norm at which the gradients of each optimizer are clipped, or a function that clips.
        backward: Called with a loss in place of `loss.backward()`, for example `accelerator.backward`.
        scaler: A torch.amp.GradScaler.
        schedulers: Stepped after every optimizer step.
        no_sync: Context for backward passes that no step follows, for example `ddp_model.no_sync`.
    """

    def __init__(
        self,
        optimizer: Optimizers = None,
        *,
        clip: float | Callable[[], Any] | None = None,
        backward: Callable[[Tensor], Any] | None = None,
        scaler: Any = None,
        schedulers: Sequence[Any] = (),
        no_sync: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        one = isinstance(optimizer, torch.optim.Optimizer)
        self.optimizers: list[Any] = [optimizer] if one else list(optimizer or ())  # type: ignore[arg-type]
        if not (clip is None or callable(clip) or isinstance(clip, (int, float))):
            raise BadArgument(
                f"clip is {clip!r}.", "Give a norm to clip at, or a function that clips."
            )
        self.clip, self.own_backward, self.scaler = clip, backward, scaler
        self.schedulers, self.no_sync = schedulers, no_sync

    def zero_grad(self) -> None:
        """Clear the gradients of every optimizer."""
        for optimizer in self.optimizers:
            optimizer.zero_grad()

    def backward(self, losses: tuple[Tensor, ...]) -> None:
        """Backward pass of one loss for all optimizers, or of loss i for the parameters of optimizer i."""
        if len(losses) == 1:
            self._backward(losses[0])
            return
        for loss, options in losses_apart(losses, self.optimizers):
            (loss if self.scaler is None else self.scaler.scale(loss)).backward(**options)

    def _backward(self, loss: Tensor) -> None:
        if self.scaler is not None:
            loss = self.scaler.scale(loss)
        if self.own_backward is not None:
            self.own_backward(loss)
        else:
            loss.backward()

    def step(self) -> None:
        """Unscale and clip gradients, step the optimizers, then the schedulers."""
        for optimizer in self.optimizers:
            if self.scaler is not None:
                self.scaler.unscale_(optimizer)
            if isinstance(self.clip, (int, float)):
                nn.utils.clip_grad_norm_(parameters_of(optimizer), self.clip)
        if callable(self.clip):
            self.clip()
        for optimizer in self.optimizers:
            if self.scaler is None:
                optimizer.step()
            else:
                self.scaler.step(optimizer)
        if self.scaler is not None:
            self.scaler.update()
        for scheduler in self.schedulers:
            scheduler.step()

    def accumulating(self) -> AbstractContextManager[Any]:
        """`no_sync`."""
        return self.no_sync()


def parameters_of(optimizer: Any) -> list[Tensor]:
    """The parameters that an optimizer holds."""
    return [p for group in optimizer.param_groups for p in group["params"]]


def losses_apart(
    losses: tuple[Tensor, ...], optimizers: Sequence[Any]
) -> list[tuple[Tensor, dict[str, Any]]]:
    """Each loss with the arguments of a backward pass that reaches only the parameters of its own optimizer."""
    if len(losses) != len(optimizers):
        raise BadArgument(
            f"tbptt_step returned {len(losses)} losses for {len(optimizers)} optimizers.",
            "Return one loss for all optimizers, or one for each.",
        )
    last = len(losses) - 1
    return [
        (loss, {"inputs": parameters_of(optimizer), "retain_graph": k < last})
        for k, (loss, optimizer) in enumerate(zip(losses, optimizers, strict=True))
    ]


def truncated_bptt(
    step: TBPTTStep,
    batch: Any,
    state: Any = None,
    *,
    k1: int | None = None,
    window: int | None = None,
    optimizer: Optimizers = None,
    update: Update = "chunk",
    accumulate: int = 1,
    time_dim: int = 1,
    clip: float | Callable[[], Any] | None = None,
    backward: Callable[[Tensor], Any] | None = None,
    scaler: Any = None,
    schedulers: Sequence[Any] = (),
    no_sync: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> BatchResult:
    """Train on one batch by truncated BPTT: chunk by chunk, the state carried over each seam and detached.

    For windows that reach back into the batch before, keep a `ChunkLoop` and call its `run`.

    Args:
        step: (chunk, state) -> (loss, state): runs the model over a chunk. State None at the start.
        batch: Any structure of tensors; see `TimeBatch` for what is cut in time. Packed sequences too.
        state: State before the first step: the `state` of the last batch's result, or None.
        k1: Steps of a chunk. None: the whole batch.
        window: k2, how many steps the losses of a chunk reach back. None: k1.
        optimizer: One or several. None: gradients are left in `.grad`.
        update: One optimizer step per "chunk", or per "batch" with the losses averaged over its chunks.
        accumulate: Number of chunks (batches) per optimizer step; their losses are averaged. Fewer at the end of the
            batch make a step too.
        time_dim: Dimension of time in the tensors of the batch: 1 for (B, T, ...), 0 for (T, B, ...).
        clip: Norm to clip at, or a function that clips.
        backward: In place of `loss.backward()`.
        scaler: A torch.amp.GradScaler. Use autocast within `step`.
        schedulers: Stepped after every optimizer step.
        no_sync: Context for backward passes that no step follows (DDP's `no_sync`).

    Returns:
        Mean loss, state after the last step (detached), and the numbers of chunks and optimizer steps.

    Example:
        >>> state = None
        >>> for batch in loader:
        ...     result = rnndiag.train.truncated_bptt(step, batch, state, k1=35, optimizer=optimizer, clip=0.25)
        ...     state = result.state
    """
    updates = PlainUpdates(
        optimizer,
        clip=clip,
        backward=backward,
        scaler=scaler,
        schedulers=schedulers,
        no_sync=no_sync,
    )
    loop = ChunkLoop(
        step, updates, k1, window, update=update, accumulate=accumulate, time_dim=time_dim
    )
    return loop.run(batch, state, flush=True)
