"""A gradient that vanishes is recorded as what it is, however small, until the precision itself ends."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

import rnndiag


def test_adjoints_and_contributions_of_1e25_are_no_zeros() -> None:
    torch.manual_seed(0)
    module, x = nn.RNN(2, 4), torch.randn(30, 3, 2)
    with torch.no_grad():
        module.weight_hh_l0.mul_(0.02 / torch.linalg.matrix_norm(module.weight_hh_l0, 2))
    with rnndiag.probe(module) as probe:
        module(x)[0][-1].sum().backward()
    (run,) = probe.layer_runs
    exact = rnndiag.adjoints(run.to(torch.float64)).state.norm(dim=-1).mean(1)
    stored = probe.recording["adjoint_norm", run.name].values[:, 0]
    seen = exact.numpy() > 1e-36
    assert exact[seen].min() < 1e-25
    assert np.allclose(stored[seen], exact[seen], rtol=1e-4, atol=0.0)
    sizes = rnndiag.contributions(run.to(torch.float64), "weight_ih").flatten(1).norm(dim=1)
    key = list(run.weights).index("weight_ih")
    found = probe.recording["contribution_norm", run.name].values[key]
    assert np.allclose(found[seen], sizes[seen], rtol=1e-4, atol=0.0)
