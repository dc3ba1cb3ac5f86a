"""Contributions g_t(θ) = (∂s_t/∂θ at fixed s_{t-1})^T δ_t of every step, and their norms without forming them.

The contribution to a matrix weight is a sum of rank-one terms, g_t = Σ_b l_{t,b} r_{t,b}^T, to a bias a sum of rows,
g_t = Σ_b l_{t,b}: `factors` gives l and r. Any other weight takes a VJP per step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import Tensor

from rnndiag.engine.adjoints import Adjoints, adjoints
from rnndiag.engine.cells import State
from rnndiag.engine.layer_run import LayerRun
from rnndiag.engine.transition import pulled_back, step
from rnndiag.errors import BadArgument


class LeftFactor:
    """Cached products of one left factor, which W_ih and b_ih share, and W_hh too where the cell is additive."""

    def __init__(self, values: Tensor, blocks: int) -> None:
        self.values, self.blocks = values, blocks

    @cached_property
    def sum(self) -> Tensor:
        total: Tensor = self.values.sum(1)
        return total

    @cached_property
    def norm(self) -> Tensor:
        """|l_{t,b}| of every sample and step, (T, B)."""
        size: Tensor
        if self.values.shape[1] > self.values.shape[2]:
            size = torch.linalg.vector_norm(self.values, dim=-1)
        else:
            size = (
                torch.stack([gram.diagonal(dim1=-2, dim2=-1) for gram in self.gram]).sum(0).sqrt()
            )
        return size

    @cached_property
    def rows(self) -> Tensor:
        """(blocks, T, B, m / blocks)"""
        rows: Tensor = self.values.unflatten(-1, (self.blocks, -1)).movedim(2, 0)
        return rows

    @cached_property
    def gram(self) -> list[Tensor]:
        """Inner products of the samples at each step, (T, B, B) for each block of rows."""
        return [block @ block.mT for block in self.rows]

    @cached_property
    def largest(self) -> Tensor:
        """|l_{t,b}| of the sample with the largest norm at each step, (T,)."""
        size: Tensor = self.norm.amax(1)
        return size


def by_vjp(
    run: LayerRun, keys: tuple[str, ...], delta: State, times: Tensor | None = None
) -> dict[str, Tensor]:
    """g_t of the weights `keys` by VJPs, (T', *shape) per key, for all steps or those of `times`.

    All steps in one vmap; one by one where a user's module does not allow vmap: it branches on a tensor, writes in
    place, or has its own autograd.Function.
    """
    previous, inputs = run.previous(), run.inputs.detach()
    if times is not None:
        previous, delta = tuple(p[times] for p in previous), tuple(p[times] for p in delta)
        inputs = inputs[times]
    chosen = {key: run.weights[key].detach() for key in keys}
    fixed = {key: value.detach() for key, value in run.weights.items() if key not in chosen}

    def one(x: Tensor, before: State, cotangent: State) -> dict[str, Tensor]:
        def forward(weights: Mapping[str, Tensor]) -> State:
            return step(run.cell, {**fixed, **weights}, x, before)

        pull = torch.func.vjp(forward, chosen)[1]
        (grads,) = pull(cotangent)
        return dict(grads)

    if run.cell.run_step is None:
        return dict(torch.vmap(one)(inputs, previous, delta))
    try:
        return dict(torch.vmap(one)(inputs, previous, delta))
    except (RuntimeError, ValueError, NotImplementedError):
        rows = [
            _one_by_one(run, {**fixed, **chosen}, keys, *step_of)
            for step_of in zip(
                inputs, zip(*previous, strict=True), zip(*delta, strict=True), strict=True
            )
        ]
    return {key: torch.stack(each) for key, each in zip(keys, zip(*rows, strict=True), strict=True)}


def _one_by_one(
    run: LayerRun,
    weights: Mapping[str, Tensor],
    keys: tuple[str, ...],
    x: Tensor,
    before: State,
    cotangent: State,
) -> State:
    with torch.enable_grad():
        leaves = {key: weights[key].detach().requires_grad_() for key in keys}
        out = step(run.cell, {**weights, **leaves}, x, before)
        return pulled_back(out, cotangent, tuple(leaves.values()))


CANCELLED = 1024.0
"""|g_t|² below this many roundings of (Σ_b |g_{t,b}|)² is recomputed from g_t: the Gram sum has lost its digits."""

MARGIN = 1e4
"""Norms within this factor of the range in which squares under- or overflow are recomputed after scaling."""

FORMED_BYTES = 64 * 2**20
"""Memory limit of contributions that are formed at once, in bytes."""


def out_of_range(sizes: Tensor) -> Tensor:
    """Where squares of `sizes` may under- or overflow in their precision, or are NaN, as bool of the same shape."""
    limits = torch.finfo(sizes.dtype)
    low, high = limits.tiny**0.5 * MARGIN, limits.max**0.5 / MARGIN
    return torch.logical_not((sizes >= low) & (sizes <= high))


def cancelled(squares: Tensor, bound: Tensor, dtype: torch.dtype) -> Tensor:
    """Where a sum of terms of size `bound` is so small that it consists of rounding errors."""
    rounding = CANCELLED * torch.finfo(dtype).eps
    return torch.lt(squares, rounding * bound)


def recomputable_steps(left: Tensor, right: Tensor | None, doubtful: Tensor) -> Tensor:
    """Indices of the doubtful steps (T,) whose contributions are finite and not exactly zero."""
    times = doubtful.nonzero().squeeze(-1)
    for side in (left, right):
        if side is not None and len(times):
            size = side[times].abs().flatten(1).amax(1)
            times = times[(size > 0) & size.isfinite()]
    return times


def scaled(values: Tensor) -> tuple[Tensor, Tensor]:
    """(T, B, n) with the largest entry of each step 1, in single precision at least, and that entry's size (T,)."""
    wide = values.to(torch.promote_types(values.dtype, torch.float32))
    scale = wide.abs().flatten(1).amax(1)
    return wide / scale[:, None, None], scale.double()


def norms_by_forming(left: Tensor, right: Tensor, blocks: int) -> Tensor:
    """|g_t| of each block of rows (blocks, T) of g_t = Σ_b left_b right_b^T, from g_t itself, float64.

    left (T, B, m), right (T, B, n). At most FORMED_BYTES are formed at a time.
    """
    (a, scale), (b, other) = scaled(left.double()), scaled(right.double())
    at_once = max(1, FORMED_BYTES // max(1, 8 * a.shape[-1] * b.shape[-1]))
    pieces = []
    for x, y in zip(a.split(at_once), b.split(at_once), strict=True):
        each = (x.mT @ y).unflatten(1, (blocks, -1))
        pieces.append(torch.linalg.vector_norm(each, dim=(-2, -1)))
    return torch.cat(pieces).mT * scale * other


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


FACTORS = {
    "weight_ih": ("a_ih", "inputs"),
    "weight_hh": ("a_hh", "h"),
    "bias_ih": ("a_ih", "one"),
    "bias_hh": ("a_hh", "one"),
    "weight_hr": ("h_adjoint", "projected"),
}
"""Weight key -> names of the left and the right factor of its gradient Σ left right^T. Other weights take a VJP."""


def factors(adj: Adjoints, key: str) -> Factors | None:
    """The rank-one form of one weight's contributions; None for a weight that is not in `FACTORS`."""
    if adj.run.cell.pointwise is None or key not in FACTORS:
        return None
    left_name, right_name = FACTORS[key]
    left = {"a_ih": adj.a_ih, "a_hh": adj.a_hh, "h_adjoint": adj.parts[0]}[left_name]
    assert left is not None
    if right_name == "h":
        return Factors(left, adj.run.previous_part(0))
    return Factors(
        left, {"inputs": adj.run.inputs, "projected": adj.projected, "one": None}[right_name]
    )


@torch.inference_mode(False)
@torch.no_grad()
def contributions(
    run: LayerRun, parameter: str, adj: Adjoints | None = None, times: Tensor | None = None
) -> Tensor:
    """The contribution g_t of every step to the gradient of one parameter, summed over the batch.

    Args:
        run: A layer run.
        parameter: Key of the weight, as in `run.weights`.
        adj: `adjoints(run)`, where they are known already.
        times: Steps to compute. Default: all.

    Returns:
        g_t, (T', *shape of the parameter). Their sum over t is the gradient.

    Raises:
        BadArgument: The layer has no such weight.

    Example:
        >>> each = rnndiag.contributions(layer_run, "weight_hh")
        >>> torch.allclose(each.sum(0), layer_run.gradients["weight_hh"], atol=1e-6)
        True
    """
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


def _keys_by_vjp(adj: Adjoints) -> tuple[str, ...]:
    return tuple(
        key
        for key, value in adj.run.weights.items()
        if factors(adj, key) is None and value.is_floating_point()
    )


VJP_BYTES = 64 * 2**20
"""Memory limit of contributions that are formed for their norms, some steps at a time, in bytes."""


def _step_batches(adj: Adjoints, keys: tuple[str, ...]) -> list[Tensor]:
    size = sum(adj.run.weights[key].numel() * adj.run.weights[key].element_size() for key in keys)
    steps = torch.arange(adj.run.T, device=adj.run.device)
    return list(steps.split(max(1, VJP_BYTES // max(1, size))))


@dataclass(frozen=True)
class ContributionNorms:
    """Norms of one parameter's contributions over time."""

    norm: Tensor
    """|g_t|_F of the batch sum, (T,), float64."""
    sample_norm: Tensor
    """Mean over the samples that have step t of |g_{t,b}|_F, (T,), float64; NaN where it is not available."""
    total: Tensor
    """Σ_t g_t, of the parameter's shape."""
    along_total: Callable[[], Tensor]
    """<g_t, Σ g> / |Σ g|, (T,): one matrix product, computed on first use."""
    by_gate: Callable[[], Tensor] | None = None
    """|g_t|_F of the rows of each gate, (blocks, T), for the matrices W_ih and W_hh; computed on first use."""

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
    """Norms of the contributions to every weight, from small Gram products: no g_t of a matrix weight is formed.

    Args:
        adj: The adjoints of a layer run.

    Returns:
        Weight key -> norms over time, total and alignment with the total.

    Example:
        >>> norms = rnndiag.contribution_norms(rnndiag.adjoints(layer_run))
        >>> norms["weight_hh"].norm.shape
        torch.Size([12])
    """
    run, valid = adj.run, adj.run.mask().sum(1).clamp(min=1)
    norms: dict[str, ContributionNorms] = {}
    sides: dict[int, LeftFactor] = {}
    for key in run.weights:
        found = factors(adj, key)
        if found is None:
            continue
        left = sides.setdefault(id(found.left), LeftFactor(found.left, 1))
        norms[key] = _factored_norms(found, left, valid, _blocks_of(run, found.left))
    by_vjp_keys = _keys_by_vjp(adj)
    if by_vjp_keys:
        norms.update(_formed_norms(adj, by_vjp_keys))
    return {key: norms[key] for key in run.weights if key in norms}


def _blocks_of(run: LayerRun, left: Tensor) -> int:
    """Number of gates whose rows lie in one left factor; 1 for a projection, whose rows belong to no gate."""
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
    """|g_t| by block of rows (blocks, T) and |g_{t,b}| (T, B), float64; recomputed where rounding dominates."""
    by_block, each, vague, lost = _measured(left, right)
    times = recomputable_steps(left.values, right, lost)
    if len(times):
        values, scale = scaled(left.values[times])
        some = None if right is None else right[times]
        if some is not None:
            some, other = scaled(some)
            scale = scale * other
        again = _measured(LeftFactor(values, left.blocks), some)
        by_block[:, times], each[times] = again[0] * scale, again[1] * scale[:, None]
        vague[times] = again[2]
    if right is not None:
        times = recomputable_steps(left.values, right, vague)
        if len(times):
            by_block[:, times] = norms_by_forming(left.values[times], right[times], left.blocks)
    return by_block, each


def _measured(left: LeftFactor, right: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """|g_t| by block of rows (blocks, T) and |g_{t,b}| (T, B), float64; the steps (T,) at which samples cancel, and
    those at which squares leave the precision's range."""
    lost = out_of_range(left.largest)
    if right is None:
        by_block = torch.linalg.vector_norm(left.sum, dim=-1).double()[None]
        return by_block, left.norm.double(), torch.zeros_like(lost), lost
    squares, vague = _block_squares(left, right)
    size = right.norm(dim=-1)
    across = size.amax(1)
    lost = lost | out_of_range(across)
    lost = lost | out_of_range(across * left.largest)
    return squares.double().sqrt(), (left.norm * size).double(), vague, lost


def _along(found: Factors, total: Tensor) -> Tensor:
    """<g_t, Σ g> / |Σ g|, (T,)."""
    right, way = found.right, _direction(total)
    if right is None:
        return torch.sum(found.left, 1) @ way
    # Elementwise products over the narrower factor take less memory.
    narrow = right.shape[-1] <= found.left.shape[-1]
    pulled = right * (found.left @ way) if narrow else found.left * (right @ way.mT)
    return torch.sum(pulled, (1, 2))


def _direction(total: Tensor) -> Tensor:
    """total / |total|; NaN if it is zero."""
    # Scaled first, so that the squares in the norm stay in range.
    wide = total.double() / total.abs().amax()
    way: Tensor = wide / torch.linalg.vector_norm(wide)
    return way.to(total.dtype)


def _block_squares(left: LeftFactor, right: Tensor) -> tuple[Tensor, Tensor]:
    """|g_t|² of each block of rows (blocks, T), by B x B Grams, or by forming g_t where B is the longer side; and the
    steps (T,) at which the samples cancel so far that the Gram sum is rounding."""
    batch, n = right.shape[1], right.shape[2]
    m = left.rows.shape[-1]
    # Grams take B² (m + n) multiplications a step; forming g_t takes B m n, and memory.
    if batch * (m + n) <= 2 * m * n:
        gram = right @ right.mT
        squares = torch.stack([(block * gram).sum((1, 2)) for block in left.gram]).clamp(min=0)
        own = gram.diagonal(dim1=-2, dim2=-1)
        bounds = [(block.diagonal(dim1=-2, dim2=-1) * own).sqrt().sum(1) for block in left.gram]
        bound = torch.stack(bounds).square()
        return squares, cancelled(squares, bound, right.dtype).any(0)
    size = max(1, VJP_BYTES // max(1, m * n * right.element_size()))
    formed = [
        [(a.mT @ b).square().sum((1, 2)) for a, b in zip(*pair, strict=True)]
        for pair in ((torch.split(block, size), torch.split(right, size)) for block in left.rows)
    ]
    squares = torch.stack([torch.cat(row) for row in formed])
    return squares, torch.zeros_like(squares[0], dtype=torch.bool)


def _formed_norms(adj: Adjoints, keys: tuple[str, ...]) -> dict[str, ContributionNorms]:
    stretches = _step_batches(adj, keys)
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
