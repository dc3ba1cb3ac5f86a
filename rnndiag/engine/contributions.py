"""Contributions g_t(θ) = (∂s_t/∂θ at fixed s_{t-1})^T δ_t of every step, and their norms without forming them.

Every matrix weight is a sum of rank-one terms, g_t = Σ_b l_{t,b} r_{t,b}^T, every bias a sum of rows,
g_t = Σ_b l_{t,b}: `factors` gives l and r. A weight of any other kind takes a VJP a step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import Tensor

from rnndiag.engine import doubtful_norms
from rnndiag.engine.adjoints import Adjoints, adjoints
from rnndiag.engine.layer_run import LayerRun
from rnndiag.engine.left_factor import LeftFactor
from rnndiag.engine.loose_weights import by_vjp
from rnndiag.errors import BadArgument


@dataclass(frozen=True)
class Factors:
    """g_t = Σ_b left_{t,b} right_{t,b}^T: left (T, B, m), right (T, B, n); right None: g_t = Σ_b left_{t,b}."""

    left: Tensor
    right: Tensor | None

    def total(self) -> Tensor:
        """Σ_t g_t, of the parameter's shape."""
        if self.right is None:
            return self.left.sum((0, 1))
        return self.left.flatten(0, 1).T @ self.right.flatten(0, 1)

    def each(self) -> Tensor:
        """g_t for every t, (T, *shape)."""
        if self.right is None:
            return self.left.sum(1)
        return self.left.mT @ self.right


def _a_ih(adj: Adjoints) -> Tensor:
    assert adj.a_ih is not None
    return adj.a_ih


def _a_hh(adj: Adjoints) -> Tensor:
    assert adj.a_hh is not None
    return adj.a_hh


_FACTORS: dict[str, Callable[[Adjoints], Factors]] = {
    "weight_ih": lambda adj: Factors(_a_ih(adj), adj.run.inputs),
    "weight_hh": lambda adj: Factors(_a_hh(adj), adj.run.previous_part(0)),
    "bias_ih": lambda adj: Factors(_a_ih(adj), None),
    "bias_hh": lambda adj: Factors(_a_hh(adj), None),
    "weight_hr": lambda adj: Factors(adj.parts[0], adj.projected),
}


def factors(adj: Adjoints, key: str) -> Factors | None:
    """The rank-one form of one weight's contributions; None for a weight that enters in another way."""
    if adj.run.cell.pointwise is None or key not in _FACTORS:
        return None
    return _FACTORS[key](adj)


@torch.inference_mode(False)
@torch.no_grad()
def contributions(
    run: LayerRun, parameter: str, adj: Adjoints | None = None, times: Tensor | None = None
) -> Tensor:
    """g_t(θ) for every step t (or those of `times`), (T, *shape of the parameter), summed over the batch."""
    if parameter not in run.weights:
        raise BadArgument(
            f"Layer {run.name!r} has no weight {parameter!r}.", f"It has: {', '.join(run.weights)}."
        )
    adj = adjoints(run) if adj is None else adj
    found = factors(adj, parameter)
    if found is not None:
        if times is not None:
            right = None if found.right is None else found.right[times]
            found = Factors(found.left[times], right)
        return found.each()
    return by_vjp(run, (parameter,), adj.parts, times)[parameter]


def _loose_keys(adj: Adjoints) -> tuple[str, ...]:
    return tuple(
        key
        for key, value in adj.run.weights.items()
        if factors(adj, key) is None and value.is_floating_point()
    )


LOOSE_BYTES = 64 * 2**20
"""Contributions that must be formed to be normed are formed for a stretch of steps of at most this size."""


def _loose_stretches(adj: Adjoints, keys: tuple[str, ...]) -> list[Tensor]:
    size = sum(adj.run.weights[key].numel() * adj.run.weights[key].element_size() for key in keys)
    steps = torch.arange(adj.run.T, device=adj.run.device)
    return list(steps.split(max(1, LOOSE_BYTES // max(1, size))))


@dataclass(frozen=True)
class ContributionNorms:
    """Sizes of one parameter's contributions over time."""

    norm: Tensor
    """|g_t|_F of the batch sum, (T,), float64."""
    sample_norm: Tensor
    """Mean over the samples that have step t of |g_{t,b}|_F, (T,), float64; NaN where it is not available."""
    total: Tensor
    """Σ_t g_t, of the parameter's shape."""
    along_total: Callable[[], Tensor]
    """<g_t, Σ g> / |Σ g|, (T,): one matrix product, made when it is asked for."""
    by_gate: Callable[[], Tensor] | None = None
    """|g_t|_F of the rows of each gate, (blocks, T), for the matrices W_ih and W_hh; made when it is asked for."""

    @cached_property
    def gate_norm(self) -> Tensor | None:
        """|g_t|_F of the rows of each gate, (blocks, T), float64; None for a weight without gates."""
        return None if self.by_gate is None else self.by_gate()

    @cached_property
    def alignment(self) -> Tensor:
        """cos(g_t, Σ g), (T,); NaN where one of the two is zero."""
        along: Tensor = self.along_total()
        return along / self.norm


@torch.inference_mode(False)
@torch.no_grad()
def contribution_norms(adj: Adjoints) -> dict[str, ContributionNorms]:
    """The sizes of the contributions to every weight, from small Gram products: no g_t of a matrix weight is formed."""
    run, valid = adj.run, adj.run.mask().sum(1).clamp(min=1)
    norms: dict[str, ContributionNorms] = {}
    sides: dict[int, LeftFactor] = {}
    for key in run.weights:
        found = factors(adj, key)
        if found is None:
            continue
        left = sides.setdefault(id(found.left), LeftFactor(found.left, 1))
        norms[key] = _factored_norms(found, left, valid, _blocks_of(run, found.left))
    loose = _loose_keys(adj)
    if loose:
        norms.update(_formed_norms(adj, loose))
    return {key: norms[key] for key in run.weights if key in norms}


def _blocks_of(run: LayerRun, left: Tensor) -> int:
    """How many gates' rows lie in one left factor; a projection's rows belong to no gate."""
    units = run.cell.units(run.weights)
    return left.shape[-1] // units if left.shape[-1] % units == 0 else 1


def _factored_norms(
    found: Factors, left: LeftFactor, valid: Tensor, blocks: int
) -> ContributionNorms:
    right, total = found.right, found.total()
    whole, each = _sizes(left, right)
    return ContributionNorms(
        whole[0],
        each.sum(1) / valid,
        total,
        partial(_along, found, total),
        None if right is None else partial(_by_gate, found, blocks),
    )


@torch.inference_mode(False)
@torch.no_grad()
def _by_gate(found: Factors, blocks: int) -> Tensor:
    return _sizes(LeftFactor(found.left, blocks), found.right)[0]


def _sizes(left: LeftFactor, right: Tensor | None) -> tuple[Tensor, Tensor]:
    """|g_t| by block of rows (blocks, T) and |g_{t,b}| (T, B), float64; where that is in doubt, taken anew."""
    by_block, each, vague, lost = _measured(left, right)
    times = doubtful_norms.worth_it(left.values, right, lost)
    if len(times):
        values, scale = doubtful_norms.scaled(left.values[times])
        some = None if right is None else right[times]
        if some is not None:
            some, other = doubtful_norms.scaled(some)
            scale = scale * other
        again = _measured(LeftFactor(values, left.blocks), some)
        by_block[:, times], each[times] = again[0] * scale, again[1] * scale[:, None]
        vague[times] = again[2]
    if right is not None:
        times = doubtful_norms.worth_it(left.values, right, vague)
        if len(times):
            by_block[:, times] = doubtful_norms.formed(
                left.values[times], right[times], left.blocks
            )
    return by_block, each


def _measured(left: LeftFactor, right: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """|g_t| by block of rows (blocks, T) and |g_{t,b}| (T, B), float64; the steps (T,) at which samples cancel too far
    to tell, and those at which squares leave the precision's range."""
    lost = doubtful_norms.out_of_range(left.largest)
    if right is None:
        by_block = torch.linalg.vector_norm(left.sum, dim=-1).double()[None]
        return by_block, left.norm.double(), torch.zeros_like(lost), lost
    squares, vague = _block_squares(left, right)
    size = right.norm(dim=-1)
    across = size.amax(1)
    lost = lost | doubtful_norms.out_of_range(across)
    lost = lost | doubtful_norms.out_of_range(across * left.largest)
    return squares.double().sqrt(), (left.norm * size).double(), vague, lost


def _along(found: Factors, total: Tensor) -> Tensor:
    """<g_t, Σ g> / |Σ g|, (T,)."""
    right, way = found.right, _direction(total)
    if right is None:
        return torch.sum(found.left, 1) @ way
    narrow = right.shape[-1] <= found.left.shape[-1]
    pulled = right * (found.left @ way) if narrow else found.left * (right @ way.mT)
    return torch.sum(pulled, (1, 2))


def _direction(total: Tensor) -> Tensor:
    """total / |total|, NaN where it is zero."""
    wide = total.double() / total.abs().amax()
    way: Tensor = wide / torch.linalg.vector_norm(wide)
    return way.to(total.dtype)


def _block_squares(left: LeftFactor, right: Tensor) -> tuple[Tensor, Tensor]:
    """|g_t|² of each block of rows (blocks, T), by B x B Grams, or by forming g_t where B is the longer side; and the
    steps (T,) at which the samples cancel so far that a Gram does not tell."""
    batch, n = right.shape[1], right.shape[2]
    m = left.rows.shape[-1]
    if batch * (m + n) <= 2 * m * n:
        gram = right @ right.mT
        squares = torch.stack([(block * gram).sum((1, 2)) for block in left.gram]).clamp(min=0)
        own = gram.diagonal(dim1=-2, dim2=-1)
        bounds = [(block.diagonal(dim1=-2, dim2=-1) * own).sqrt().sum(1) for block in left.gram]
        bound = torch.stack(bounds).square()
        return squares, doubtful_norms.cancelled(squares, bound, right.dtype).any(0)
    size = max(1, LOOSE_BYTES // max(1, m * n * right.element_size()))
    formed = [
        [(a.mT @ b).square().sum((1, 2)) for a, b in zip(*pair, strict=True)]
        for pair in ((torch.split(block, size), torch.split(right, size)) for block in left.rows)
    ]
    squares = torch.stack([torch.cat(row) for row in formed])
    return squares, torch.zeros_like(squares[0], dtype=torch.bool)


def _formed_norms(adj: Adjoints, keys: tuple[str, ...]) -> dict[str, ContributionNorms]:
    stretches = _loose_stretches(adj, keys)
    totals = {key: torch.zeros_like(adj.run.weights[key]) for key in keys}
    for times in stretches:
        for key, each in by_vjp(adj.run, keys, adj.parts, times).items():
            totals[key] = totals[key] + each.sum(0)
    norm: dict[str, list[Tensor]] = {key: [] for key in keys}
    along: dict[str, list[Tensor]] = {key: [] for key in keys}
    for times in stretches:
        for key, each in by_vjp(adj.run, keys, adj.parts, times).items():
            flat = each.reshape(each.shape[0], -1)
            norm[key].append(torch.linalg.vector_norm(flat, dim=1, dtype=torch.float64))
            along[key].append(flat @ _direction(totals[key]).flatten())
    result = {}
    for key in keys:
        size = torch.cat(norm[key])
        unknown = torch.full_like(size, torch.nan)
        inner = torch.cat(along[key])
        result[key] = ContributionNorms(size, unknown, totals[key], partial(torch.clone, inner))
    return result
