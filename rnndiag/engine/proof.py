"""Three proofs that an analysis of a backward pass is right; the sum law alone would not detect a permutation in time.

1. The sum law: Σ_t g_t(θ) = the gradient autograd produced for θ in that backward pass, per weight, over all layer runs
   that share it.
2. The recursion: δ_t = e_t + J_{t+1}^T δ_{t+1} at random times, J^T by torch.autograd of one step; and ∂L/∂x, ∂L/∂s_0
   against autograd's own where it gave them.
3. The forward error: the states recomputed from the record against the recorded ones.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from rnndiag.engine.adjoints import Adjoints, ForwardGap, adjoints
from rnndiag.engine.contributions import ContributionNorms, contribution_norms
from rnndiag.engine.layer_run import LayerRun
from rnndiag.engine.outside_gradients import gradients_from_outside
from rnndiag.engine.transition import flat_step, transposed_by_autograd
from rnndiag.errors import BadArgument


@torch.no_grad()
def forward_error(run: LayerRun) -> float:
    """The forward error of all steps at once, for any cell."""
    gap = ForwardGap(run, wide=True)
    gap.add_states(flat_step(run.cell, run.weights, run.inputs, run.previous()), 0, run.T)
    found = gap.relative()
    assert found is not None
    return found


Verdict = Literal["exact", "inexact", "unverified"]

RANDOM_TIMES = 8
"""Number of random times at which the recursion is tested."""


@dataclass(frozen=True)
class Bound:
    """Limits of each residual by rounding, for the precision of the recorded forward and backward pass."""

    sum_law: float
    recursion: float
    forward: float


BOUNDS: dict[torch.dtype, Bound] = {
    torch.float64: Bound(sum_law=1e-10, recursion=1e-10, forward=1e-10),
    torch.float32: Bound(sum_law=1e-4, recursion=1e-3, forward=1e-3),
    torch.bfloat16: Bound(sum_law=3e-2, recursion=3e-2, forward=3e-2),
    torch.float16: Bound(sum_law=1e-2, recursion=1e-2, forward=1e-2),
}


@dataclass(frozen=True)
class LayerProof:
    """Relative residuals of proofs 2 and 3 of one layer run; NaN if there was nothing to compare with."""

    recursion: float
    forward: float
    input_gradient: float = float("nan")
    initial_gradient: float = float("nan")


@dataclass(frozen=True)
class Proof:
    """The verdict over all layer runs of one backward pass."""

    verdict: Verdict
    reasons: tuple[str, ...]
    residual: Mapping[str, float] = field(default_factory=dict)
    """Parameter -> |Σ_t g_t − G| / Σ_t |g_t|."""
    residual_of_gradient: Mapping[str, float] = field(default_factory=dict)
    """Parameter -> |Σ_t g_t − G| / |G|."""
    layers: Mapping[str, LayerProof] = field(default_factory=dict)
    """Layer run -> residuals of the other two proofs."""

    @property
    def worst(self) -> float:
        """The largest sum-law residual; NaN if no weight could be checked."""
        return max(self.residual.values(), default=float("nan"), key=_nan_is_worst)


def _nan_is_worst(value: float) -> float:
    return float("inf") if value != value else value


def prove(
    runs: Sequence[LayerRun],
    analyses: Sequence[tuple[Adjoints, Mapping[str, ContributionNorms]]] | None = None,
    *,
    dtype: torch.dtype | None = None,
    outside: Mapping[str, str] | None = None,
    seed: int = 0,
) -> Proof:
    """Compare the analyses of all layer runs of one backward pass with the results of autograd.

    Args:
        runs: The layer runs of one backward pass.
        analyses: Adjoints and contribution norms of every run. Default: computed.
        dtype: The precision that the model ran in, which sets the bounds. Default: that of the runs.
        outside: Parameter -> why its gradient does not come from the recurrent calls alone, where that is known. A
            penalty on a weight is recognised.
        seed: Seed of the random times at which the recursion is tested.

    Returns:
        The residuals and a verdict.

    Example:
        >>> rnndiag.prove([layer_run]).verdict
        'exact'
    """
    if analyses is None:
        analyses = [(adj, contribution_norms(adj)) for adj in map(adjoints, runs)]
    bound = _bound(dtype or (runs[0].dtype if runs else torch.float32))
    law = _sum_law(runs, [norms for _, norms in analyses])
    residual, relative = law.residual, law.relative
    failing = {n: r for n, r in law.remainders.items() if not residual[n] <= bound.sum_law}
    sound = [name for name in residual if name not in failing]
    left_over = {n: bound.sum_law * law.sizes[n] + law.rounding[n] for n in failing}
    outside = {**gradients_from_outside(runs, failing, sound, left_over), **(outside or {})}
    layers = {
        run.name: _layer_proof(run, adj, seed) for run, (adj, _) in zip(runs, analyses, strict=True)
    }
    failed = [
        _law_fault(name, value, law.remainders[name])
        for name, value in residual.items()
        if name in failing and name not in outside
    ]
    for name, proof in layers.items():
        failed += _layer_faults(name, proof, bound)
    explained = [f"{name}: {why}" for name, why in outside.items()]
    noted = [note for run in runs for note in run.notes]
    if failed:
        noted += [_NOT_REPLAYED.format(run.name, run.open) for run in runs if run.open]
    if failed or noted:
        return Proof("inexact", (*noted, *failed, *explained), residual, relative, layers)
    if not residual:
        reason = "no recurrent weight received a gradient in this backward pass"
        return Proof("unverified", (reason, *explained), residual, relative, layers)
    unheld = [_UNHELD.format(run.name) for run in runs if not _is_held(run)]
    if unheld:
        return Proof("unverified", (*unheld, *explained), residual, relative, layers)
    return Proof("exact", tuple(explained), residual, relative, layers)


_NOT_REPLAYED = "the contributions of {} come from a replay ({})"
_UNHELD = "no weight and no input of {} received a gradient that its numbers could be held against"


def _is_held(run: LayerRun) -> bool:
    """Whether autograd returned a gradient that an error in e_t would change, or e_t is zero."""
    given = (run.input_gradient, run.initial_gradient)
    held = bool(run.gradients) or any(value is not None for value in given)
    return held or not any(bool(part.any()) for part in run.direct)


def _bound(dtype: torch.dtype) -> Bound:
    if dtype not in BOUNDS:
        raise BadArgument(
            f"There are no bounds of rounding for {dtype}.",
            f"Known are {', '.join(str(known) for known in BOUNDS)}.",
        )
    return BOUNDS[dtype]


def _law_fault(name: str, value: float, remainder: Tensor) -> str:
    if not bool(remainder.isfinite().all()):
        return f"the gradient of {name} or a contribution to it is not finite, so their sum proves nothing"
    return f"the contributions to {name} sum to the gradient only within {value:.1e}"


def _layer_faults(name: str, proof: LayerProof, bound: Bound) -> list[str]:
    faults = []
    if not proof.recursion <= bound.recursion:
        faults.append(f"the adjoints of {name} miss their recursion by {proof.recursion:.1e}")
    if not proof.forward <= bound.forward:
        faults.append(f"the recomputed states of {name} are off by {proof.forward:.1e}")
    for what, value in (("inputs", proof.input_gradient), ("s_0", proof.initial_gradient)):
        if value > bound.recursion:
            faults.append(f"the gradient of {name}'s {what} is off by {value:.1e}")
    return faults


@dataclass(frozen=True)
class _SumLaw:
    """Per parameter: both residuals, G − Σ_t g_t in float64, Σ_t |g_t|, and the rounding error of G."""

    residual: dict[str, float] = field(default_factory=dict)
    relative: dict[str, float] = field(default_factory=dict)
    remainders: dict[str, Tensor] = field(default_factory=dict)
    sizes: dict[str, float] = field(default_factory=dict)
    rounding: dict[str, float] = field(default_factory=dict)


def _sum_law(runs: Sequence[LayerRun], norms: Sequence[Mapping[str, ContributionNorms]]) -> _SumLaw:
    """The sum law of every parameter, over all layer runs that share it."""
    totals: dict[str, list[Tensor]] = defaultdict(list)
    sizes: dict[str, float] = defaultdict(float)
    gradients: dict[str, Tensor] = {}
    for run, by_key in zip(runs, norms, strict=True):
        for key, found in by_key.items():
            if key not in run.gradients:
                continue
            name = run.parameters.get(key, f"{run.name}.{key}")
            totals[name].append(found.total)
            sizes[name] += float(found.norm.sum(dtype=torch.float64))
            gradients[name] = run.gradients[key]
    law = _SumLaw()
    for name, parts in totals.items():
        gradient = gradients[name].to(torch.float64)
        remainder = gradient - torch.stack([p.to(torch.float64) for p in parts]).sum(0)
        size, off = float(gradient.norm()), float(remainder.norm())
        floor = _rounding_of_zero(parts[0].dtype, remainder.numel())
        law.remainders[name] = remainder
        law.residual[name] = _ratio(off, sizes[name], floor)
        law.relative[name] = _ratio(off, size, floor)
        law.sizes[name] = sizes[name]
        # The gradient itself was rounded when autograd summed it.
        law.rounding[name] = 8 * torch.finfo(gradients[name].dtype).eps * size
    return law


def _rounding_of_zero(dtype: torch.dtype, count: int) -> float:
    """|x| of `count` numbers at the end of the normal range: below it a difference of them is meaningless."""
    return float(torch.finfo(dtype).tiny * count**0.5)


def _ratio(off: float, size: float, floor: float = 0.0) -> float:
    """off / size; 0 if `off` is below the floor, inf if the size is zero or not finite."""
    if off <= floor:
        return 0.0
    return off / size if 0.0 < size < float("inf") else float("inf")


def _layer_proof(run: LayerRun, adj: Adjoints, seed: int) -> LayerProof:
    given = run.input_gradient
    initial = run.initial_gradient
    return LayerProof(
        recursion=recursion_residual(run, adj, seed),
        forward=forward_error(run) if adj.forward_error is None else adj.forward_error,
        input_gradient=float("nan") if given is None else _relative([adj.inputs()], [given]),
        initial_gradient=float("nan") if initial is None else _relative(adj.initial, initial),
    )


def _relative(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    pairs = [(a.double(), b.double()) for a, b in zip(found, expected, strict=True)]
    off = sum(float((a - b).square().sum()) for a, b in pairs) ** 0.5
    return _ratio(off, sum(float(b.square().sum()) for _, b in pairs) ** 0.5)


def recursion_residual(run: LayerRun, adj: Adjoints, seed: int = 0) -> float:
    """Worst |δ_t − e_t − J_{t+1}^T δ_{t+1}| / |δ_t| over random times, J^T by torch.autograd of one step.

    The last step is among the times. Past a sequence's end δ is zero.
    """
    draw = np.random.default_rng(seed)
    picked = draw.choice(run.T, size=min(RANDOM_TIMES, run.T), replace=False)
    times = torch.as_tensor(np.union1d(picked, [run.T - 1]), device=run.device)
    keep = run.mask()
    after = (times + 1).clamp(max=run.T - 1)
    exists = (keep[after] & (times + 1 < run.T)[:, None])[..., None]
    pulled = transposed_by_autograd(run, tuple(part[after] for part in adj.parts), after)
    offs = torch.zeros(len(times), dtype=torch.float64, device=run.device)
    sizes = torch.zeros_like(offs)
    for delta, direct, back in zip(adj.parts, run.direct, pulled, strict=True):
        zero = torch.zeros_like(back)
        here = torch.where(keep[times][..., None], direct[times], zero)
        expected = here + torch.where(exists, back, zero)
        offs += (delta[times] - expected).double().square().sum((1, 2))
        sizes += expected.double().square().sum((1, 2))
    floor = _rounding_of_zero(run.dtype, run.B * run.S)
    ratios = [
        _ratio(off, size, floor)
        for off, size in zip(offs.sqrt().tolist(), sizes.sqrt().tolist(), strict=True)
    ]
    return max(ratios, key=_nan_is_worst)
