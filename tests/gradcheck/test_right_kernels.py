"""No alarm for kernels that are right, in every dtype and with every kind of argument."""

from __future__ import annotations

import functools

import pytest
import torch
from planted_scan import PlantedScan, loop
from right_kernels import NAMES, MinGRU, arguments
from torch import Tensor, nn

import rnndiag


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("name", NAMES)
def test_right_kernel_gives_no_alarm(name: str, seed: int) -> None:
    torch.manual_seed(seed)
    kernel, inputs, state = arguments(name, steps=9)
    result = rnndiag.gradcheck_recurrence(kernel, inputs=inputs, state=state, seed=seed)
    assert result, str(result)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_right_kernel_gives_no_alarm_in_other_dtypes(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    kernel = PlantedScan(chunk=4)
    options = {"inputs": torch.randn(9, 2, 3), "state": torch.randn(2, 4), "dtype": dtype}
    weights = [p.detach().clone() for p in kernel.parameters()]
    for reference in (None, loop(kernel)):
        result = rnndiag.gradcheck_recurrence(kernel, reference, **options)
        assert result, str(result)
    for before, after in zip(weights, kernel.parameters(), strict=True):
        assert after.dtype == torch.float32
        assert torch.equal(before, after)
        assert after.grad is None


def test_bug_of_a_double_precision_kernel_is_seen_at_its_precision() -> None:
    torch.manual_seed(0)
    kernel = PlantedScan("wrong for odd lengths", 4).double()
    result = rnndiag.gradcheck_recurrence(
        kernel,
        loop(kernel),
        inputs=torch.randn(9, 2, 3, dtype=torch.float64),
        state=torch.randn(2, 4, dtype=torch.float64),
    )
    assert not result
    assert min(cell.tolerance for cell in result.table if cell.cotangent == "outputs") < 1e-8


def test_variable_lengths_of_packed_sequences_are_right() -> None:
    torch.manual_seed(0)
    rnn = nn.GRU(3, 4)

    def packed(x: Tensor, h: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if lengths is None:
            return rnn(x, h)
        pack = nn.utils.rnn.pack_padded_sequence(x, lengths, enforce_sorted=False)
        outputs, final = rnn(pack, h)
        return nn.utils.rnn.pad_packed_sequence(outputs, total_length=len(x))[0], final

    result = rnndiag.gradcheck_recurrence(
        packed, inputs=torch.randn(9, 3, 3), state=torch.randn(1, 3, 4), lengths=[4, 9, 1]
    )
    assert result, str(result)
    assert {"lengths 4,9,1", "lengths 9,8,5"} <= {cell.run for cell in result.table}


def test_kernel_that_always_wants_lengths_and_an_empty_sequence() -> None:
    torch.manual_seed(0)
    scan = PlantedScan(chunk=4)

    def kernel(x: Tensor, h: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        return scan(x, h, lengths)

    result = rnndiag.gradcheck_recurrence(
        kernel, inputs=torch.randn(9, 2, 3), state=torch.randn(2, 4), lengths=torch.tensor([0, 7])
    )
    assert result, str(result)
    assert {"scan.weight", "scan.decay"} <= {cell.target for cell in result.table}


def test_parameters_are_found_in_closures_partials_methods_and_the_graph() -> None:
    torch.manual_seed(0)
    model = MinGRU()
    options = {"inputs": torch.randn(2, 5, 3), "state": torch.randn(2, 4)}
    hidden = {"model": model}  # found by the graph alone

    class Holder:
        def __call__(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
            return hidden["model"](x, h)

    kernels = [model, model.forward, lambda x, h: model(x, h), functools.partial(model), Holder()]
    for kernel in kernels:
        result = rnndiag.gradcheck_recurrence(kernel, **options)
        targets = {cell.target for cell in result.table if cell.cotangent == "outputs"}
        assert result
        assert len(targets) == 6, targets
    chosen = rnndiag.gradcheck_recurrence(model, parameters={"w": model.gate.weight}, **options)
    assert {c.target for c in chosen.table if c.cotangent == "both"} == {"w", "inputs", "state"}


def test_reference_module_is_matched_by_the_names_of_its_parameters() -> None:
    torch.manual_seed(0)
    kernel, reference = nn.LSTM(3, 4), nn.LSTM(3, 4)
    reference.load_state_dict(kernel.state_dict())
    options = {
        "inputs": torch.randn(9, 2, 3),
        "state": (torch.randn(1, 2, 4), torch.randn(1, 2, 4)),
    }
    result = rnndiag.gradcheck_recurrence(kernel, reference, **options)
    assert result
    assert not result.notes
    assert {cell.truth for cell in result.table if cell.run == "whole"} == {"reference"}
    with torch.no_grad():
        reference.weight_hh_l0[0, 0] += 0.01
    assert not rnndiag.gradcheck_recurrence(kernel, reference, **options)


def test_state_may_be_a_dict_and_time_the_second_dimension() -> None:
    torch.manual_seed(0)

    def kernel(x: tuple[Tensor, Tensor], state: dict[str, Tensor]) -> tuple[Tensor, object]:
        a, b = x
        h, count, outputs = state["h"], state["count"], []
        for t in range(a.shape[1]):
            h = torch.sigmoid(a[:, t]) * h + b[:, t]
            outputs.append(h)
        return torch.stack(outputs, 1), {"h": h, "count": count + a.shape[1]}

    result = rnndiag.gradcheck_recurrence(
        kernel,
        inputs=(torch.randn(2, 7, 3), torch.randn(2, 7, 3)),
        state={"h": torch.randn(2, 3), "count": torch.zeros(2, dtype=torch.long)},
    )
    assert result, str(result)
    targets = {cell.target for cell in result.table if cell.cotangent == "outputs"}
    assert targets == {"inputs[0]", "inputs[1]", "state['h']"}
