"""`rnndiag.preflight(model, batch, loss_fn)`: the structural checks, in seconds, without training."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from rnndiag.recorder.need.output_loss import LossFn, loss_of_training_step
from rnndiag.recorder.preflight.finding import finding
from rnndiag.recorder.preflight.gradient import check_gradient
from rnndiag.recorder.preflight.layout import layout_of
from rnndiag.recorder.preflight.observe import SEED, Observer, PreflightSubject
from rnndiag.recorder.preflight.padding import check_padding
from rnndiag.recorder.preflight.samples import check_samples
from rnndiag.recorder.preflight.state import check_state
from rnndiag.recorder.preflight.time import check_time
from rnndiag.recorder.preflight.untouched import untouched

if TYPE_CHECKING:
    from rnndiag.health.finding import Finding

CHECKS: tuple[Callable[[PreflightSubject], list[Finding]], ...] = (
    check_samples,
    check_time,
    check_padding,
    check_state,
    check_gradient,
)


def preflight(
    model: nn.Module,
    batch: Any,
    loss_fn: LossFn | None = None,
    *,
    batch_dim: int | None = None,
    lengths: Tensor | Sequence[int] | None = None,
    detach: int | str | None = None,
) -> list[Finding]:
    """Check a model for structural faults that are common in recurrent projects: one finding per check and layer.

    No step is trained. The model, its gradients and the random number streams are left as they were.

    Args:
        model: The module that is to be trained.
        batch: One batch, as the training loop gives it.
        loss_fn: `loss_fn(model, batch)` returns the scalar loss. None: the model's own `training_step(batch, 0)`.
        batch_dim: Which dim of the batch's tensors are the samples: 0, or 1 for time first. None: read off the tensors.
        lengths: (B,) number of valid steps of each sample. None: all.
        detach: Number of steps after which the state is meant to be detached; "any": any. None: never.

    Returns:
        One finding for each check and layer: status "fail" or "warn" is a fault, "pass" is none.

    Raises:
        BadArgument: There is no `loss_fn`, and the model has no `training_step`.

    Example:
        >>> found = rnndiag.preflight(model, batch, loss_of, batch_dim=1)
        >>> [(one.check, one.message) for one in found if one.status == "fail"]
        []
    """
    if loss_fn is None:
        loss_fn = loss_of_training_step(model)
    subject = PreflightSubject(
        Observer(model, loss_fn), batch, layout_of(batch, batch_dim, lengths), detach
    )
    with warnings.catch_warnings(), untouched(model):
        torch.manual_seed(SEED)
        warnings.simplefilter("ignore")
        if not subject.seen().runs:
            return [_nothing(subject)]
        found: list[Finding] = []
        for check in CHECKS:
            found += check(subject)
    return _without_consequences(found)


def _nothing(subject: PreflightSubject) -> Finding:
    recurrent = [
        name
        for name, module in subject.observe.model.named_modules()
        if isinstance(module, nn.RNNBase | nn.RNNCellBase) and name in subject.seen().called
    ]
    if recurrent:
        return check_gradient(subject)[0]
    return finding(
        "nothing to check",
        "not_judged",
        "no recurrent layer ran and got a gradient",
        "Give a batch and a loss that use the model's recurrent layers.",
    )


def _without_consequences(found: list[Finding]) -> list[Finding]:
    """Drop consequences: a layer with time and batch exchanged also looks ahead and forgets; only the cause is
    reported."""
    if any(one.check.endswith(("swapped", "transposed")) for one in found):
        effects = ("looks ahead", "padding counts", "state not carried")
        return [one for one in found if not one.check.endswith(effects)]
    return found
