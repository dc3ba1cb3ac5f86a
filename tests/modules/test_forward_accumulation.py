"""The gradient accumulated forwards in time, a_t = b_t + c_t a_{t-1}, is the one that goes backwards."""

import torch

from lightning_modules.cells import CELLS
from lightning_modules.recurrence import Stepped


def test_forward_accumulation_gives_the_gradient_of_bptt():
    torch.manual_seed(0)
    step = CELLS["linear"].step(2, 3).double()
    weight = step.weight_hh
    inputs = torch.randn(7, 1, 2, dtype=torch.double)
    error = torch.randn(3, dtype=torch.double)
    outputs, _ = Stepped(step)(inputs)
    ((outputs[-1, 0] + outputs[3, 0]) * error).sum().backward()

    h = torch.zeros(3, dtype=torch.double)
    accumulated = torch.zeros(3, 3, 3, dtype=torch.double)  # dh_i / dW_jk
    total = torch.zeros(3, 3, dtype=torch.double)
    with torch.no_grad():
        for t, x in enumerate(inputs[:, 0]):
            at_fixed_state = torch.einsum("ij,k->ijk", torch.eye(3).double(), h)
            accumulated = at_fixed_state + torch.einsum("il,ljk->ijk", weight, accumulated)
            h = step.weight_ih @ x + step.bias_ih + weight @ h + step.bias_hh
            if t in (3, 6):
                total += torch.einsum("i,ijk->jk", error, accumulated)
    torch.testing.assert_close(total, weight.grad)
