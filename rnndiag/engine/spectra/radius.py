"""Spectral radius and norm of every block of W_hh, and the spectral radius of J_t over time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rnndiag.engine.layer_run import LayerRun
from rnndiag.engine.spectra.jacobians import jacobians, require_finite, step_index
from rnndiag.engine.spectra.summary import four_numbers

EXACT_UP_TO = 128
"""Up to this size all eigenvalues of a matrix are computed: ARPACK is not faster there."""

TOLERANCE = 1e-8
"""Relative tolerance of ARPACK's eigenvalues."""

WANTED, VECTORS = 6, 40
"""Number of eigenvalues requested from ARPACK, and of Krylov vectors that it keeps.

Spectra of recurrent nets crowd at the rim: for one eigenvalue with the default number of vectors, ARPACK converged to
one that was 1e-2 too small in random matrices of size 512.
"""


ALL_UP_TO = 512
"""Up to this size all eigenvalues of a block of W_hh are computed, for a picture; of a larger one the largest only."""


def largest_modulus(matrices: Tensor) -> Tensor:
    """ρ of each matrix (N, S, S), as (N,) float64."""
    size = matrices.shape[-1]
    if matrices.shape[0] == 0:
        return matrices.new_zeros(0)
    if size <= EXACT_UP_TO:
        moduli: Tensor = torch.linalg.eigvals(matrices).abs()
        return moduli.amax(-1)
    found = [_by_arpack(matrix).abs().amax() for matrix in matrices.cpu()]
    return torch.stack(found).to(matrices)


def leading_eigenvalues(matrix: Tensor) -> Tensor:
    """Eigenvalues of (S, S), complex, largest modulus first: all for S <= 512, else the six largest by ARPACK."""
    values = torch.linalg.eigvals(matrix) if len(matrix) <= ALL_UP_TO else _by_arpack(matrix.cpu())
    order = values.abs().argsort(descending=True)
    return values[order][: None if len(matrix) <= ALL_UP_TO else WANTED].to(matrix.device)


def _by_arpack(matrix: Tensor) -> Tensor:
    """The six largest eigenvalues from a fixed start vector, complex; all of them if ARPACK does not converge."""
    import numpy as np
    from scipy.sparse.linalg import ArpackError, eigs

    values = matrix.numpy()
    # ARPACK fails on a zero matrix.
    if not values.any():
        return torch.zeros(WANTED, dtype=torch.complex128)
    # A fixed start vector makes the result reproducible; ARPACK draws its own by default.
    start = np.random.default_rng(0).standard_normal(len(values))
    try:
        found = eigs(
            values, k=WANTED, v0=start, ncv=VECTORS, tol=TOLERANCE, return_eigenvectors=False
        )
    except ArpackError:
        everything: Tensor = torch.linalg.eigvals(matrix)
        return everything
    return torch.from_numpy(found)


CHUNK_BYTES = 64 * 2**20
"""Written-out Jacobians of at most about this many bytes are held at once."""


@dataclass(frozen=True)
class SpectralRadius:
    """ρ and σ of the recurrent weights by block, and ρ(J_t)."""

    layer: str
    blocks: tuple[str, ...]
    """Names of the blocks: gates of W_hh, and keys of square matrices that a cell has beside it."""
    radius: Tensor
    """ρ of each block (blocks,). With a projection, of W_hr W_block, which determines the loop through h."""
    norm: Tensor
    """σ, the largest singular value of each block of W_hh as it is, (blocks,)."""
    eigenvalues: Tensor
    """Eigenvalues of each block (blocks, n), largest modulus first: all up to H = 512, else the six largest."""
    jacobian_radius: Tensor
    """ρ(J_t) (T', B); NaN past a sequence's length."""
    times: tuple[int, ...]
    """The steps t of `jacobian_radius`."""
    method: str
    """How ρ(J_t) was computed, with its tolerance."""

    def rows(self) -> dict[str, Tensor]:
        """The stored quantities by name; without those of W_hh for a cell that has none."""
        rows = {"jacobian_radius": four_numbers(self.jacobian_radius)}
        if self.blocks:
            rows["spectral_radius"] = self.radius
            rows["spectral_norm"] = self.norm
            rows["recurrent_eigenvalues"] = torch.view_as_real(self.eigenvalues)
        return rows

    def coordinates(self) -> dict[str, tuple[str, ...]]:
        """Labels of the dims of `rows`."""
        units = self.eigenvalues.shape[-1]
        return {
            "block": self.blocks,
            "unit": tuple(str(number) for number in range(1, units + 1)),
            "time": tuple(map(str, self.times)),
        }


@torch.no_grad()
def spectral_radius(run: LayerRun, times: Sequence[int] | None = None) -> SpectralRadius:
    """Spectral radius ρ and norm σ of each block of W_hh, and ρ(J_t) over time. Float64 inside.

    ρ(J_t) comes from all eigenvalues where S <= 128; above, from the six largest by ARPACK on the CPU to a relative
    tolerance of 1e-8, or from all of them where it does not converge. Blocks of W_hh likewise, with the limit at 512.

    Args:
        run: A layer run.
        times: Steps at which ρ(J_t) is computed. Default: all.

    Returns:
        ρ and σ by block of W_hh, and ρ(J_t) by step and sequence.

    Raises:
        BadArgument: A step is not one of the run's.
        NotExact: A state or a weight is not finite.

    Example:
        >>> found = rnndiag.spectral_radius(layer_run, times=[0, 11])
        >>> found.blocks, found.jacobian_radius.shape
        (('i', 'f', 'g', 'o'), torch.Size([2, 4]))
    """
    require_finite(run)
    names, matrices, loops = _blocks(run)
    values = [leading_eigenvalues(loop) for loop in loops]
    wanted = step_index(run, times).tolist()
    empty = torch.empty(0, dtype=torch.float64, device=run.device)
    exact = run.S <= EXACT_UP_TO
    return SpectralRadius(
        layer=run.name,
        blocks=names,
        radius=torch.stack([value.abs().amax() for value in values]) if values else empty,
        norm=torch.stack([torch.linalg.matrix_norm(m, 2) for m in matrices]) if names else empty,
        eigenvalues=torch.stack(values) if values else empty.to(torch.complex128).reshape(0, 0),
        jacobian_radius=_over_time(run, wanted),
        times=tuple(wanted),
        method="all eigenvalues" if exact else f"ARPACK, relative tolerance {TOLERANCE:.0e}",
    )


def _blocks(run: LayerRun) -> tuple[tuple[str, ...], list[Tensor], list[Tensor]]:
    """Names, blocks unchanged, and the square matrices whose eigenvalues determine the loop through h."""
    if "weight_hh" not in run.weights or not run.cell.blocks:
        return (), [], []  # a module run as a cell may use this name for weights of another layout
    weight = run.weights["weight_hh"].double()
    names = list(run.cell.blocks)
    matrices = list(weight.chunk(len(names)))
    projection = run.weights.get("weight_hr")
    loops = matrices if projection is None else [projection.double() @ m for m in matrices]
    size = loops[0].shape
    for key, extra in run.cell.extra_weights(run.weights).items():
        if extra.shape == size:
            names.append(key)
            matrices = [*matrices, extra.double()]
            loops = [*loops, extra.double()]
    return tuple(names), matrices, loops


def _over_time(run: LayerRun, times: Sequence[int]) -> Tensor:
    """ρ(J_t) at the given times, (T', B)."""
    out = torch.full((len(times), run.B), torch.nan, dtype=torch.float64, device=run.device)
    mask, run = run.mask(), run.to(dtype=torch.float64)
    size = max(1, CHUNK_BYTES // (run.B * run.S**2 * 8))
    for start in range(0, len(times), size):
        chosen = list(times[start : start + size])
        alive = mask[chosen]
        written = jacobians(run, chosen)[alive]
        rows = out[start : start + size]
        rows[alive] = largest_modulus(written)
    return out
