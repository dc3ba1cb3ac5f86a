"""The largest modulus of the eigenvalues of many matrices: all eigenvalues where small, ARPACK where large."""

from __future__ import annotations

import torch
from torch import Tensor

EXACT_UP_TO = 128
"""Matrices of at most this size have all their eigenvalues computed: up to there ARPACK is not faster."""

TOLERANCE = 1e-8
"""Relative tolerance of ARPACK's eigenvalues."""

WANTED, VECTORS = 6, 40
"""Eigenvalues asked of ARPACK and Krylov vectors it keeps. Spectra of recurrent nets crowd at the rim: asked for one
alone, with its default of vectors, it settled on one that was 1e-2 too small in random matrices of size 512."""


ALL_UP_TO = 512
"""A block of W_hh up to this size has all its eigenvalues computed, for a picture of them; a larger one the largest."""


def largest_modulus(matrices: Tensor) -> Tensor:
    """ρ of each of (N, S, S), as (N,) float64."""
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
    """The six largest from a fixed start vector, complex; all eigenvalues where it does not converge."""
    import numpy as np
    from scipy.sparse.linalg import ArpackError, eigs

    values = matrix.numpy()
    if not values.any():
        return torch.zeros(WANTED, dtype=torch.complex128)
    start = np.random.default_rng(0).standard_normal(len(values))
    try:
        found = eigs(
            values, k=WANTED, v0=start, ncv=VECTORS, tol=TOLERANCE, return_eigenvectors=False
        )
    except ArpackError:
        everything: Tensor = torch.linalg.eigvals(matrix)
        return everything
    return torch.from_numpy(found)
