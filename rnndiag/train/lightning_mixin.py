"""Truncated BPTT for Lightning 2.x: a mixin for LightningModules of `lightning` and of `pytorch_lightning`.

Lightning 1.x had `truncated_bptt_steps`. Here the author writes `tbptt_step(chunk, state) -> (loss, state)`, and the
mixin's `training_step` runs it over the chunks of a batch with an optimizer step after each. That needs manual
optimisation, which supports neither `gradient_clip_val` nor `accumulate_grad_batches` nor schedulers; the mixin does
what automatic optimisation would do with them.

Lightning refuses a Trainer that clips or accumulates for a module in manual optimisation, and does so before it calls
`setup`. So `automatic_optimization` is true until then and false during the fit. Hooks that an author overrides are
wrapped (`_HOOKS`): the mixin's part runs whether or not the author calls super().
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rnndiag.engine.truncation.estimators import Chunk
from rnndiag.errors import BadArgument, NotSupported
from rnndiag.train.auto import Auto
from rnndiag.train.chunk_loop import ChunkLoop, Update
from rnndiag.train.lightning_updates import LightningUpdates
from rnndiag.train.nested import map_tensors, where_rows
from rnndiag.train.splitting import TimeBatch

KEY = "rnndiag_tbptt"
"""Key under which the state of the stream is stored in a checkpoint."""


class TruncatedBPTT:
    """Mixin: truncated BPTT in a LightningModule. Name it before LightningModule among the bases.

    Args:
        k1: Steps of a chunk: how often the optimizer steps. None: the whole batch.
        window: k2, how many steps the losses of a chunk reach back. None: k1. "auto": chosen during training, from 4 k1
            down; or an `Auto`.
        stateful: Carry the state from batch to batch, until an epoch begins or `tbptt_reset` says so.
        update: One optimizer step per "chunk", or per "batch" with the losses averaged over its chunks.
        time_dim: Dimension of time in the tensors of a batch: 1 for (B, T, ...), 0 for (T, B, ...).
        *args, **kwargs: For the next class among the bases.

    The Trainer's `accumulate_grad_batches=n` counts chunks (with update="batch": batches), and their losses are divided
    by n, as Lightning does with batches. `gradient_clip_val`, precision and strategy are the Trainer's. With several
    optimizers all of them step; `tbptt_step` returns one loss for all, or a tuple with one for each.

    Example:
        >>> class Net(rnndiag.train.TruncatedBPTT, L.LightningModule):
        ...     def __init__(self):
        ...         super().__init__(k1=35, stateful=True)
        ...         self.lstm, self.head = nn.LSTM(8, 64, batch_first=True), nn.Linear(64, 8)
        ...     def tbptt_step(self, chunk, state):
        ...         x, y = chunk
        ...         out, state = self.lstm(x, state)
        ...         return nn.functional.mse_loss(self.head(out), y), state
    """

    _tbptt_running = False

    def __init__(
        self,
        *args: Any,
        k1: int | None = None,
        window: int | str | Auto | None = None,
        stateful: bool = False,
        update: Update = "chunk",
        time_dim: int = 1,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._tbptt_updates = LightningUpdates(self)
        self._tbptt_loop = ChunkLoop(
            self.tbptt_step, self._tbptt_updates, k1, None, update=update, time_dim=time_dim
        )
        self._tbptt_stateful = stateful
        self._tbptt_state: Any = None
        self._tbptt_monitors: dict[int, str] = {}
        self._tbptt_batch: Any = None
        self._tbptt_unfinished: dict[str, Any] | None = None
        self._tbptt_epoch: int | None = None
        self._tbptt_rows: int | None = None
        self._tbptt_kept: Any = None
        self._tbptt_done: dict[str, int] = {}
        self._tbptt_saved_auto: dict[str, Any] | None = None
        self.set_window(window)

    # What the author writes

    def tbptt_step(self, chunk: Any, state: Any) -> tuple[Any, Any]:
        """The loss of one chunk and the state after it. State None: sequences begin."""
        raise NotImplementedError(f"{type(self).__name__} has no tbptt_step(chunk, state).")

    def tbptt_reset(self, batch: Any, batch_idx: int) -> Any:
        """For `stateful`: sequences that begin with this batch. True, False, or (B,) bool."""
        return False

    def tbptt_initial_state(self, batch: Any) -> Any:
        """The state at the start of sequences. None: `tbptt_step` gets None, and reset rows become zeros."""
        return None

    # The window

    @property
    def tbptt_window(self) -> int | None:
        """k2 in use; None: equal to k1."""
        return self._tbptt_loop.window

    @property
    def tbptt_k1(self) -> int | None:
        """Number of steps of a chunk; None: the whole batch."""
        return self._tbptt_loop.k1

    @property
    def tbptt_label(self) -> str:
        """The gradient estimator in words, as named in recordings."""
        loop = self._tbptt_loop
        if loop.k1 is None:
            name = "full" if loop.window is None else f"last {loop.window} steps"
        else:
            name = Chunk(loop.k1, loop.window).label
        return name if loop.looks is None and not self._tbptt_auto_later else f"{name}, sets itself"

    @property
    def tbptt_auto(self) -> Auto | None:
        """The controller of an "auto" window, once training has begun; else None."""
        looks = self._tbptt_loop.looks
        return None if looks is None else looks.auto

    def set_window(self, window: int | str | Auto | None) -> None:
        """Use another window from the next chunk on.

        Args:
            window: k2 in steps; None: k1; "auto" or an `Auto`: see the class.
        """
        loop = self._tbptt_loop
        self._tbptt_auto_later, loop.looks, loop.keep = window == "auto", None, 0
        if isinstance(window, Auto):
            loop.follow(window, _as_module(self), self._tbptt_settle)
        elif window is None or window == "auto":
            loop.window = None
        elif isinstance(window, int) and window >= 1:
            loop.window = window
        else:
            raise BadArgument(
                f"window is {window!r}.", 'Give a number of steps, None, "auto" or an Auto.'
            )

    def _tbptt_settle(self, window: int) -> int:
        trainer = _as_module(self).trainer
        return window if trainer.world_size == 1 else int(trainer.strategy.broadcast(window))

    def _tbptt_prepare_auto(self, batch: Any) -> None:
        """Set up "auto": from 4 k1 down to k1 if the state is carried or batches have chunks, else from T down."""
        loop = self._tbptt_loop
        if self._tbptt_auto_later:
            T = TimeBatch(batch, loop.time_dim).T
            k1 = loop.k1 or T
            longest = 4 * k1 if self._tbptt_stateful else min(4 * k1, T)
            horizon = 2 * longest if self._tbptt_stateful else longest
            self.set_window(
                Auto(longest, shortest=1 if loop.k1 is None else min(k1, longest), horizon=horizon)
            )
        auto = self.tbptt_auto
        if auto is not None and self._tbptt_saved_auto is not None:
            auto.load_state_dict(self._tbptt_saved_auto)
            self._tbptt_saved_auto, loop.window = None, auto.window
        if auto is not None and auto.every is None and _as_module(self).trainer.world_size > 1:
            raise NotSupported(
                "Looks that share the training time would fall on different steps of each process.",
                "Give Auto(..., every=50): looks every so many steps.",
            )

    # What Lightning calls

    @property
    def automatic_optimization(self) -> bool:
        """False during a fit; true before, so that Lightning accepts a Trainer that clips or accumulates."""
        return not self._tbptt_running

    @automatic_optimization.setter
    def automatic_optimization(self, value: bool) -> None:
        """Ignored: the mixin controls this."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        """Train on all chunks of a batch, with their backward passes and optimizer steps."""
        loop, module = self._tbptt_loop, _as_module(self)
        trainer = module.trainer
        loop.accumulate = int(trainer.accumulate_grad_batches)
        if self._tbptt_kept is not None:
            kept, self._tbptt_kept = self._tbptt_kept, None
            loop.restore(module.transfer_batch_to_device(kept, module.device, 0))
        self._tbptt_prepare_auto(batch)
        if self._tbptt_finish(batch):
            return None
        state, reset = self._tbptt_start(batch, batch_idx)
        self._tbptt_check_ranks(batch)
        return {"loss": self._tbptt_run(batch, state, reset=reset, flush=trainer.is_last_batch)}

    def _tbptt_run(self, batch: Any, state: Any, **options: Any) -> Tensor:
        self._tbptt_batch = batch
        result = self._tbptt_loop.run(batch, state, **options)
        self._tbptt_batch = None
        self._tbptt_state = result.state if self._tbptt_stateful else None
        return result.loss

    def _tbptt_start(self, batch: Any, batch_idx: int) -> tuple[Any, Tensor | None]:
        """The state before the batch, and which sequences of a stream begin with it."""
        loop, before = self._tbptt_loop, self._tbptt_state
        begins = self.tbptt_reset(batch, batch_idx) if self._tbptt_stateful else True
        rows, self._tbptt_rows = self._tbptt_rows, TimeBatch(batch, loop.time_dim).B
        if not isinstance(begins, Tensor):
            if before is not None and not begins:
                if rows not in (None, self._tbptt_rows):
                    raise BadArgument(
                        f"The carried state holds {rows} sequences, and the batch {self._tbptt_rows}.",
                        "Give batches of equal size (drop_last=True), or say in tbptt_reset when a stream begins anew.",
                    )
                return before, None
            loop.forget()
            return self.tbptt_initial_state(batch), None
        if before is None:
            return self.tbptt_initial_state(batch), None
        fresh = self.tbptt_initial_state(batch)
        if fresh is None:
            fresh = map_tensors(torch.zeros_like, before)
        return where_rows(begins, fresh, before), begins

    def _tbptt_check_ranks(self, batch: Any) -> None:
        module = _as_module(self)
        if module.trainer.world_size == 1:
            return
        loop = self._tbptt_loop
        chunks = len(loop.bounds(TimeBatch(batch, loop.time_dim).T))
        everywhere = module.all_gather(torch.tensor(chunks, device=module.device)).flatten()
        if bool((everywhere != chunks).any()):
            raise NotSupported(
                f"The processes have batches of {everywhere.tolist()} chunks, and would wait for one another.",
                "Give all of them batches with the same number of steps.",
            )

    def log(self, name: str, *args: Any, **kwargs: Any) -> None:
        """Lightning's `log`, disabled while steps before a chunk are rerun for a longer window."""
        if not self._tbptt_loop.replaying:
            super().log(name, *args, **kwargs)  # type: ignore[misc]

    def _tbptt_finish(self, batch: Any) -> bool:
        """Finish a batch of which a checkpoint stored the rest. Returns whether `batch` was that batch."""
        if self._tbptt_unfinished is None:
            return False
        left, self._tbptt_unfinished = self._tbptt_unfinished, None
        module = _as_module(self)
        rest = module.transfer_batch_to_device(left["batch"], module.device, 0)
        state = module.transfer_batch_to_device(left["state"], module.device, 0)
        loop = self._tbptt_loop
        same = TimeBatch(rest, loop.time_dim) == TimeBatch(batch, loop.time_dim)
        flush = same and module.trainer.is_last_batch
        self._tbptt_run(rest, state, first=left["chunks"], flush=flush)
        return same

    # Hooks: each does its part after the author's own; see `_ensured`

    def configure_callbacks(self) -> Any:
        """Called first in every fit, before Lightning reads `automatic_optimization`."""
        self._tbptt_running = False
        return self._tbptt_after("configure_callbacks")

    def setup(self, stage: str) -> None:
        """Called after Lightning has verified its configuration."""
        self._tbptt_running = stage == "fit"
        self._tbptt_after("setup", stage)

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        """Clip the gradients, as automatic optimisation does after this hook."""
        trainer = _as_module(self).trainer
        if trainer.gradient_clip_val is not None:
            _as_module(self).configure_gradient_clipping(
                optimizer, trainer.gradient_clip_val, trainer.gradient_clip_algorithm
            )
        self._tbptt_after("on_before_optimizer_step", optimizer)

    def on_train_epoch_start(self) -> None:
        """Reset the stream at the start of an epoch, unless a checkpoint within the epoch is resumed."""
        epoch, self._tbptt_epoch = self._tbptt_epoch, None
        if epoch is None or epoch != _as_module(self).trainer.current_epoch:
            self._tbptt_state = self._tbptt_unfinished = None
            self._tbptt_loop.forget()
        self._tbptt_loop.waiting = 0
        self._tbptt_after("on_train_epoch_start")

    def on_train_epoch_end(self) -> None:
        """Step the schedulers that step with epochs."""
        self._tbptt_updates.epoch_ended()
        self._tbptt_after("on_train_epoch_end")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store the state of the stream, and the rest of an unfinished batch."""
        loop = self._tbptt_loop
        saved = {
            "epoch": int(_as_module(self).trainer.current_epoch),
            "updates": self._tbptt_updates.steps,
            "state": _on_cpu(self._tbptt_state),
            "window": loop.window,
            "auto": None if self.tbptt_auto is None else self.tbptt_auto.state_dict(),
            "kept": _on_cpu(loop.kept()),
        }
        if self._tbptt_batch is not None and loop.resume is not None:
            chunks, state = loop.resume
            left = {"chunks": chunks, "state": state, "batch": self._tbptt_batch}
            saved["unfinished"] = _on_cpu(left)
        checkpoint[KEY] = saved
        self._tbptt_after("on_save_checkpoint", checkpoint)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore what `on_save_checkpoint` stored."""
        saved = checkpoint.get(KEY)
        if saved is not None:
            self._tbptt_epoch, self._tbptt_updates.steps = saved["epoch"], saved["updates"]
            self._tbptt_state, self._tbptt_unfinished = saved["state"], saved.get("unfinished")
            self._tbptt_kept, self._tbptt_saved_auto = saved["kept"], saved["auto"]
            self._tbptt_loop.window, self._tbptt_loop.steps = saved["window"], saved["updates"]
        self._tbptt_after("on_load_checkpoint", checkpoint)

    def _tbptt_after(self, name: str, *args: Any) -> Any:
        """Note that the mixin's part of a hook has run, and call the next class."""
        self._tbptt_done[name] = self._tbptt_done.get(name, 0) + 1
        return getattr(super(), name)(*args)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name in _HOOKS:
            if name in cls.__dict__:
                setattr(cls, name, _ensured(name, cls.__dict__[name]))
        if "configure_optimizers" in cls.__dict__:
            cls.configure_optimizers = _without_monitors(cls.__dict__["configure_optimizers"])  # type: ignore[attr-defined]


_HOOKS = (
    *("configure_callbacks", "setup", "on_before_optimizer_step", "on_train_epoch_start"),
    *("on_train_epoch_end", "on_save_checkpoint", "on_load_checkpoint"),
)


def _ensured(name: str, hook: Callable[..., Any]) -> Callable[..., Any]:
    """An author's hook, followed by the mixin's part unless the author called it by super()."""

    @functools.wraps(hook)
    def with_part(self: TruncatedBPTT, *args: Any, **kwargs: Any) -> Any:
        before = self._tbptt_done.get(name, 0)
        result = hook(self, *args, **kwargs)
        if self._tbptt_done.get(name, 0) == before:
            getattr(TruncatedBPTT, name)(self, *args, **kwargs)
        return result

    return with_part


def _without_monitors(configure: Callable[..., Any]) -> Callable[..., Any]:
    """Remove keys that manual optimisation warns about from scheduler configurations, and store the monitored
    metrics."""

    @functools.wraps(configure)
    def without(self: TruncatedBPTT, *args: Any, **kwargs: Any) -> Any:
        def cleaned(config: Any) -> Any:
            if isinstance(config, (list, tuple)):
                return type(config)(cleaned(one) for one in config)
            if not isinstance(config, dict):
                return config
            if "scheduler" in config:
                if config.get("monitor"):
                    self._tbptt_monitors[id(config["scheduler"])] = config["monitor"]
                dropped = ("monitor", "strict", "reduce_on_plateau")
                return {key: value for key, value in config.items() if key not in dropped}
            scheduler = config.get("lr_scheduler")
            if config.get("monitor") and scheduler is not None and not isinstance(scheduler, dict):
                self._tbptt_monitors[id(scheduler)] = config["monitor"]
            return {
                key: cleaned(value) if key == "lr_scheduler" else value
                for key, value in config.items()
            }

        return cleaned(configure(self, *args, **kwargs))

    return without


def _as_module(module: TruncatedBPTT) -> Any:
    """The same object, typed as the LightningModule that it also is."""
    return module


def _on_cpu(tree: Any) -> Any:
    return map_tensors(lambda part: part.detach().cpu().clone(), tree)
