"""Backward passes and optimizer steps of truncated BPTT through the Lightning Trainer."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import ReduceLROnPlateau

from rnndiag.errors import BadArgument, NotSupported
from rnndiag.train.plain_updates import losses_apart


class LightningUpdates:
    """Backward passes and optimizer steps through the Trainer: its precision, strategy, clipping and schedulers."""

    def __init__(self, module: Any) -> None:
        self.module = module
        self.steps = 0

    def _optimizers(self) -> list[Any]:
        found = self.module.optimizers()
        return list(found) if isinstance(found, (list, tuple)) else [found]

    def _full_precision(self) -> AbstractContextManager[Any]:
        # training_step runs under autocast; automatic optimisation runs backward and step outside of it.
        return torch.autocast(self.module.device.type, enabled=False)

    def zero_grad(self) -> None:
        """Clear the gradients of every optimizer."""
        for optimizer in self._optimizers():
            self.module.on_before_zero_grad(optimizer.optimizer)
            optimizer.zero_grad()

    def backward(self, losses: tuple[Tensor, ...]) -> None:
        """Backward pass of one loss for all optimizers, or of loss i for the parameters of optimizer i."""
        with self._full_precision():
            if len(losses) == 1:
                self.module.manual_backward(losses[0])
                return
            if self.module.trainer.world_size > 1:
                raise NotSupported(
                    "tbptt_step returned several losses, and there is more than one process.",
                    "Return one loss for all optimizers.",
                )
            for loss, options in losses_apart(losses, self._optimizers()):
                self.module.manual_backward(loss, **options)

    def step(self) -> None:
        """Step every optimizer, then the schedulers that step with them."""
        with self._full_precision():
            for optimizer in self._optimizers():
                optimizer.step()
        self.steps += 1
        self._schedule("step", self.steps)

    def epoch_ended(self) -> None:
        """Step the schedulers that step with epochs."""
        self._schedule("epoch", int(self.module.trainer.current_epoch) + 1)

    def accumulating(self) -> AbstractContextManager[Any]:
        """DDP's no_sync, if the strategy has one."""
        block = getattr(self.module.trainer.strategy, "block_backward_sync", None)
        return nullcontext() if block is None else block()

    def _schedule(self, interval: str, count: int) -> None:
        metrics = self.module.trainer.callback_metrics
        for config in self.module.trainer.lr_scheduler_configs:
            if config.interval != interval or count % config.frequency:
                continue
            scheduler, metric = config.scheduler, None
            if isinstance(scheduler, ReduceLROnPlateau):
                name = self.module._tbptt_monitors.get(id(scheduler)) or getattr(
                    scheduler, "monitor", None
                )
                if name not in metrics:
                    raise BadArgument(
                        f"ReduceLROnPlateau watches {name!r}, and {sorted(metrics)} are logged.",
                        "Log it, or name another one as 'monitor' in configure_optimizers.",
                    )
                metric = metrics[name]
            self.module.lr_scheduler_step(scheduler, metric)
