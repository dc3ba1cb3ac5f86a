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


def largest_modulus(matrices: Tensor) -> Tensor:
    """ρ of each of (N, S, S), as (N,) float64."""
    size = matrices.shape[-1]
    if matrices.shape[0] == 0:
        return matrices.new_zeros(0)
    if size <= EXACT_UP_TO:
        moduli: Tensor = torch.linalg.eigvals(matrices).abs()
        return moduli.amax(-1)
    found = [_by_arpack(matrix) for matrix in matrices.cpu()]
    return torch.tensor(found, dtype=matrices.dtype, device=matrices.device)


def _by_arpack(matrix: Tensor) -> float:
    """The largest of a few, from a fixed start vector; all eigenvalues where it does not converge."""
    import numpy as np
    from scipy.sparse.linalg import ArpackError, eigs

    values = matrix.numpy()
    if not values.any():
        return 0.0
    start = np.random.default_rng(0).standard_normal(len(values))
    try:
        found = eigs(
            values, k=WANTED, v0=start, ncv=VECTORS, tol=TOLERANCE, return_eigenvectors=False
        )
    except ArpackError:
        return float(torch.linalg.eigvals(matrix).abs().amax())
    return float(np.abs(found).max())
