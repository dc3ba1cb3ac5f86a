"""A truncation window that sets itself: it starts at the longest, grows on suspicion and shrinks on proof only.

Guaranteed, with 95 % confidence over the whole run (asymptotically in the number of sequences): whenever the window was
shortened, the systematic bias pooled over the measured steps of that epoch was at most eps of max(|E g|, floor sigma),
as far as the horizon and the sequences seen can show.

Not guaranteed: convergence, the steps between looks, later weights, dependencies in fewer than 3 of n sequences or
beyond the horizon, that a longer window would learn more, or that a shorter one would not.
"""

from __future__ import annotations

import logging
from collections import deque
from dataclasses import asdict, dataclass
from time import monotonic
from typing import Any, Literal

import numpy as np

from rnndiag.errors import BadArgument, require_whole
from rnndiag.train.bias_bound import Array, excess, floor_bound, relative_bound
from rnndiag.train.look import Look, Pool

LOG = logging.getLogger("rnndiag.train")

EPOCH = 64
"""A pool holds at most this many looks, so that its proof concerns recent weights."""
FIRST_BOUND = 4
"""The bound is not used before this many looks."""
RECENT = 8
"""Number of recent looks that, beside the whole pool, decide on growing the window."""
SUSPICION = 1.65
"""The window grows if the bias exceeds eps by this many standard errors: growing wrongly costs time only."""
EFFECTIVE = 50
"""A tail with fewer effective sequences proves nothing about unseen sequences."""
GATE, GATE_LOOKS = 0.9, 100
"""The window may shrink once the loss is below GATE times its first values, or after GATE_LOOKS looks: before,
weights are near their initial values."""
LOSSES = 4
"""The loss criterion compares means of this many losses."""


@dataclass(frozen=True)
class Change:
    """One change of the window."""

    step: int
    before: int
    after: int
    reason: Literal["proved", "bias", "expired"]
    bound: float
    """Upper bound of the bias at `after`; NaN unless proved."""
    estimate: float
    """Plain estimate of the relative bias, at `after` if proved, else at `before`; NaN if not resolved."""
    looks: int
    sequences: int
    horizon: int
    sentence: str


class Auto:
    """Chooses a truncation window during training: pass measurements ("looks") to `see`, and read `window`.

    Args:
        longest: The longest window in steps.
        eps: Largest systematic bias that a window may have, relative to max(|E g|, floor sigma).
        confidence: Confidence of all proofs of the run together.
        floor: Where the mean gradient is not resolved, the bias is compared with this share of one step's noise sigma.
            A bias of eps floor sigma outweighs the noise of the steps after 1 / (eps floor)^2 steps, 1100 by default.
        start: Window to start at. None: the longest. Training may never leave a short one: windows too short for a
            dependency do not learn it.
        shortest: The shortest window in steps.
        horizon: Number of steps back that a look measures. None: `longest`.
        every: Number of steps between looks, or the largest share of training time for them, such as "10 %".
        patience: Number of looks in a row that must prove a shorter window before it is used.
        expiry: Number of looks after which a shortened window must have been proved again.
        on_unresolved: The window used if it was not: the "longest", or "hold" the present one.

    Example:
        >>> auto = rnndiag.train.Auto(longest=200)
        >>> for step, batch in enumerate(loader):
        ...     loss = train_step(batch, window=auto.window)
        ...     if auto.due(step):
        ...         auto.see(rnndiag.lag_sweep(layer_run), step, loss)
    """

    def __init__(
        self,
        longest: int,
        eps: float = 0.1,
        confidence: float = 0.95,
        floor: float = 0.3,
        start: int | None = None,
        shortest: int = 1,
        horizon: int | None = None,
        every: int | str = "10 %",
        patience: int = 12,
        expiry: int = 64,
        on_unresolved: Literal["longest", "hold"] = "longest",
    ) -> None:
        whole = {"longest": longest, "shortest": shortest, "patience": patience, "expiry": expiry}
        whole |= {"start": start or longest, "horizon": horizon or longest}
        for name, value in whole.items():
            require_whole(name, value)
        if not shortest <= longest:
            raise BadArgument(
                f"The windows go from {shortest} to {longest}.", "Give 1 <= shortest <= longest."
            )
        if start is not None and not shortest <= start <= longest:
            raise BadArgument(f"start is {start}.", f"Start within {shortest} .. {longest}.")
        if not 0 < eps < 1 or not 0.5 < confidence < 1 or floor < 0:
            raise BadArgument(
                f"eps is {eps}, confidence {confidence} and floor {floor}.",
                "Give eps in (0, 1), confidence in (0.5, 1) and floor >= 0.",
            )
        if horizon is not None and horizon < longest:
            raise BadArgument(
                f"A horizon of {horizon} steps does not see a window of {longest}.",
                "Give a horizon of at least `longest`.",
            )
        if on_unresolved not in ("longest", "hold"):
            raise BadArgument(f"on_unresolved is {on_unresolved!r}.", "Give 'longest' or 'hold'.")
        self.longest, self.shortest, self.eps, self.floor = longest, shortest, eps, floor
        self.confidence, self.horizon = confidence, horizon or longest
        self.patience, self.expiry, self.on_unresolved = patience, expiry, on_unresolved
        self.every, self._share = _every(every)
        self.window = start or longest
        self.grid = grid(shortest, longest, self.window)
        self.history: list[Change] = []
        self.looks = 0
        self._epoch, self._ready, self._proved_at, self._sequences = 1, 0, 0, 0
        self._pool = Pool(floor)
        self._recent: deque[Look] = deque(maxlen=EPOCH)
        self._losses: deque[float] = deque(maxlen=LOSSES)
        self._first_losses: list[float] = []
        self._started: float | None = None
        self._looking, self._look_seconds = 0.0, 0.0

    # When to look

    def due(self, step: int) -> bool:
        """Whether to take a look at this step."""
        if self.every is not None:
            return step % self.every == 0
        now = monotonic()
        if self._started is None:
            self._started = now
            return False
        # The first look is free: nothing is known of its cost yet.
        spent = self._looking + self._look_seconds
        return spent <= self._share * (now - self._started)

    def looked(self, seconds: float) -> None:
        """Add the duration of a look, for `every="10 %"`."""
        self._looking += seconds
        self._look_seconds = seconds

    # What a look changes

    def see(self, sweep: Any, step: int, loss: float | None = None) -> Change | None:
        """Update with one look; returns the change of the window, if any.

        Args:
            sweep: A `Look` over windows (0, *grid), or what `rnndiag.lag_sweep` returns.
            step: Number of optimizer steps so far, for the history.
            loss: Loss of this step; the window is kept until the loss has changed.

        Returns:
            The change of the window, or None.
        """
        look = sweep if isinstance(sweep, Look) else Look.of_sweep(sweep, self.grid)
        if look is None:
            return None  # no gradient at all: nothing to learn from
        if look.windows != (0, *self.grid):
            raise BadArgument(
                f"The look is of the windows {look.windows}, not of {(0, *self.grid)}.",
                "Measure the windows of `auto.grid`.",
            )
        self.looks += 1
        self._sequences += look.sequences
        if loss is not None and np.isfinite(loss):
            self._losses.append(float(loss))
            if len(self._first_losses) < LOSSES:
                self._first_losses.append(float(loss))
        self._pool.looks.append(look)
        self._recent.append(look)
        change = self._grow(step) or self._shrink(step) or self._expire(step)
        if change is None and len(self._pool) >= EPOCH:
            self._new_epoch()
        if change is not None:
            self.history.append(change)
            LOG.info(change.sentence)
        return change

    def bounds(self) -> Array:
        """Upper bound of the bias by window of `grid`; inf if nothing is proved."""
        pool = self._pool
        if len(pool) < FIRST_BOUND:
            return np.full(len(self.grid), np.inf)
        alpha = (1 - self.confidence) / (self._epoch * (self._epoch + 1))
        share = alpha / 2 if self.floor else alpha
        sums = pool.sums
        bound = relative_bound(sums, share)
        if self.floor:
            bound = np.minimum(bound, floor_bound(sums, pool.floors, share))
        seen = (pool.effective_sequences() >= EFFECTIVE) | pool.too_small_to_matter()
        found: Array = np.where(seen, bound, np.inf)[1:]
        return found

    def _grow(self, step: int) -> Change | None:
        """Use a longer window if recent looks or all looks show a bias above `eps`."""
        if self.window >= self.longest:
            return None
        place = 1 + self.grid.index(self.window)
        recent = Pool(self.floor, list(self._recent)[-RECENT:])
        for pool in (recent, self._pool):
            if len(pool) < RECENT:
                continue
            over = float(excess(pool.sums, self.eps, pool.floors)[place])
            if not over > SUSPICION:
                continue
            estimate = pool.estimate()
            fitting = [
                w
                for k, w in enumerate(self.grid)
                if w > self.window and bool((estimate[k + 1 :] <= self.eps).all())
            ]
            after = fitting[0] if fitting else self.longest
            bias = float(estimate[place])
            words = f"bias about {bias:.0%}" if np.isfinite(bias) else "bias"
            return self._move(
                after,
                step,
                "bias",
                f"{words}, {over:.1f} standard errors above {self.eps:.0%}.",
                estimate=bias,
            )
        return None

    def _shrink(self, step: int) -> Change | None:
        """Use the shortest window proved, once `patience` looks in a row have proved a shorter one."""
        bounds, shortest = self.bounds(), self.longest
        # From long to short, to the first window that is not proved. The longest is what the others are compared with.
        for window, bound in list(zip(self.grid, bounds, strict=True))[-2::-1]:
            if not bound <= self.eps:
                break
            shortest = window
        if shortest <= self.window:
            self._proved_at = self.looks
        self._ready = self._ready + 1 if shortest < self.window else 0
        if self._ready < self.patience or not self._loss_has_moved():
            return None
        place = self.grid.index(shortest)
        bound, looks = float(bounds[place]), len(self._pool)
        return self._move(
            shortest,
            step,
            "proved",
            f"over {looks} looks its systematic bias is at most {bound:.1%} of the gradient, or of "
            f"{self.floor:.0%} of one step's noise where the gradient is smaller ({self.confidence:.0%}, valid at any "
            f"time; seen: {self.horizon} steps back, {sum(one.sequences for one in self._pool.looks)} sequences).",
            bound=bound,
            estimate=float(self._pool.estimate()[place + 1]),
        )

    def _expire(self, step: int) -> Change | None:
        """Go back to the longest window if the present one was not proved for `expiry` looks."""
        if self.window >= self.longest or self.looks - self._proved_at < self.expiry:
            return None
        self._proved_at = self.looks
        if self.on_unresolved == "hold":
            return None
        words = f"not shown for {self.expiry} looks; holding the longest."
        return self._move(self.longest, step, "expired", words)

    def _loss_has_moved(self) -> bool:
        if self.looks > GATE_LOOKS:
            return True
        if len(self._first_losses) < LOSSES:
            return False
        return float(np.mean(self._losses)) < GATE * float(np.mean(self._first_losses))

    def _move(
        self,
        after: int,
        step: int,
        reason: Literal["proved", "bias", "expired"],
        words: str,
        bound: float = float("nan"),
        estimate: float = float("nan"),
    ) -> Change:
        """Set the window, start a new pool of looks, and return the change."""
        before, self.window = self.window, after
        at = f" at step {step}" if reason != "expired" else ""
        sentence = f"window {before} -> {after}{at}: {words}"
        looks, sequences = len(self._pool), sum(one.sequences for one in self._pool.looks)
        self._proved_at = self.looks
        self._new_epoch()
        return Change(
            step, before, after, reason, bound, estimate, looks, sequences, self.horizon, sentence
        )

    def _new_epoch(self) -> None:
        self._pool, self._ready = Pool(self.floor), 0
        self._epoch += 1

    # Checkpoints

    def state_dict(self) -> dict[str, Any]:
        """The controller's state as plain numbers."""
        return {
            "window": self.window,
            "grid": list(self.grid),
            "looks": self.looks,
            "counters": [self._epoch, self._ready, self._proved_at, self._sequences],
            "pool": [look.as_dict() for look in self._pool.looks],
            "recent": [look.as_dict() for look in self._recent],
            "losses": list(self._losses),
            "first_losses": list(self._first_losses),
            "seconds": [self._looking, self._look_seconds],
            "history": [asdict(change) for change in self.history],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`.

        Args:
            state: The state of an Auto with the same grid.
        """
        if list(self.grid) != list(state["grid"]):
            raise BadArgument(
                f"The state is of the windows {state['grid']}, not of {list(self.grid)}.",
                "Make it with the same longest, shortest and start.",
            )
        self.window, self.looks = state["window"], state["looks"]
        self._epoch, self._ready, self._proved_at, self._sequences = state["counters"]
        self._pool = Pool(self.floor, [Look.from_dict(one) for one in state["pool"]])
        self._recent = deque(map(Look.from_dict, state["recent"]), maxlen=EPOCH)
        self._losses = deque(state["losses"], maxlen=LOSSES)
        self._first_losses = list(state["first_losses"])
        self._looking, self._look_seconds = state["seconds"]
        self.history = [Change(**one) for one in state["history"]]


def grid(shortest: int, longest: int, start: int) -> tuple[int, ...]:
    """4, 6, 8, 12, 16, 24, ... from `shortest` up to `longest`, plus start and longest."""
    powers = [2**k for k in range(longest.bit_length())]
    inside = {w for p in powers for w in (p, 3 * p // 2) if max(4, shortest) <= w < longest}
    return tuple(sorted({*inside, start, longest, *([shortest] if shortest > 1 else [])}))


def _every(every: int | str) -> tuple[int | None, float]:
    """(number of steps or None, share of time): exactly one of them is used."""
    if isinstance(every, int) and every >= 1:
        return every, 0.0
    if isinstance(every, str) and every.replace(" ", "").endswith("%"):
        try:
            share = float(every.replace(" ", "")[:-1]) / 100
        except ValueError:
            share = 0.0
        if 0 < share < 1:
            return None, share
    raise BadArgument(f"every is {every!r}.", 'Give a number of steps, or a share such as "10 %".')
