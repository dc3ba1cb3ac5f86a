"""`memory_need` on nets whose memory and tasks whose need are known."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from need.shift_register import (
    IGNORED,
    Batch,
    ShiftRegister,
    copy_batches,
    cross_entropy,
    noise_batches,
)
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pack_padded_sequence

import rnndiag
from rnndiag.errors import BadArgument, NotSupported


def test_need_beyond_the_window_is_found_at_its_lag() -> None:
    need = rnndiag.memory_need(ShiftRegister(3), copy_batches(6), cross_entropy, beyond=3)
    assert need.lead == "needed_beyond"
    assert need.further.gain == pytest.approx(math.log(2), rel=0.05)
    (group,) = (group for group in need.groups if group.significant)
    assert (group.low, group.high) == (4, 7)
    assert need.peak_lag == 6
    assert need.used_memory is None
    assert "4-7 steps back" in need.sentence


def test_need_within_reach_is_not_called_a_need_of_a_longer_window() -> None:
    need = rnndiag.memory_need(ShiftRegister(1), copy_batches(3), cross_entropy, beyond=5)
    assert need.lead == "needed_within"
    assert need.further.gain < need.gate


def test_state_that_holds_the_answer_is_a_matter_of_the_readout() -> None:
    need = rnndiag.memory_need(ShiftRegister(6), copy_batches(4), cross_entropy, beyond=3)
    assert need.lead == "readout"
    assert need.present.gain == pytest.approx(math.log(2), rel=0.05)


def test_solved_task_needs_nothing_and_uses_exactly_the_inputs_it_reads() -> None:
    need = rnndiag.memory_need(ShiftRegister(6, read=4), copy_batches(4), cross_entropy)
    assert need.lead == "solved"
    assert need.used_memory == 5
    # states differ for as many steps as they hold inputs, the first being step 0
    assert need.burn_in == 5
    assert need.scale > 0.5


def test_noise_needs_nothing_and_the_control_would_have_found_a_need() -> None:
    need = rnndiag.memory_need(ShiftRegister(2), noise_batches(12), cross_entropy, beyond=3)
    assert need.lead == "nothing_found"
    assert need.floor <= 0.03
    assert need.further.p > 0.05 or need.further.lower < need.gate


def test_product_of_two_inputs_is_found() -> None:
    batches = copy_batches(5)
    for batch in batches:
        symbols = batch["x"].argmax(-1)
        batch["y"] = torch.where(batch["y"] == IGNORED, IGNORED, batch["y"] ^ symbols)
    need = rnndiag.memory_need(ShiftRegister(2), batches, cross_entropy, beyond=3)
    assert need.lead == "needed_beyond"
    assert need.peak_lag == 5


def test_sequence_as_long_as_the_limit_is_not_testable() -> None:
    batches = noise_batches(length=8)
    need = rnndiag.memory_need(ShiftRegister(2), batches, cross_entropy, beyond=8)
    assert need.lead == "not_testable"


def test_longer_sequences_show_a_need_beyond_the_length_that_training_has() -> None:
    longer = copy_batches(8, length=20)
    pieces = [{name: part[:, 14:] for name, part in batch.items()} for batch in longer]
    model = ShiftRegister(3)
    assert rnndiag.memory_need(model, pieces, cross_entropy, beyond=6).lead == "not_testable"
    need = rnndiag.memory_need(model, longer, cross_entropy, beyond=6)
    assert need.lead == "needed_beyond"
    assert need.peak_lag == 8
    assert need.further.gain == pytest.approx(math.log(2), rel=0.05)
    assert need.within.gain < need.gate


def test_few_sequences_are_not_resolved() -> None:
    need = rnndiag.memory_need(ShiftRegister(3), copy_batches(6, 3, sequences=8), cross_entropy)
    assert need.lead == "unresolved"
    assert "24 sequences" in need.sentence


def test_one_large_batch_is_divided_by_its_sequences() -> None:
    batches = copy_batches(6, 1, sequences=256)
    need = rnndiag.memory_need(ShiftRegister(3), batches, cross_entropy, beyond=3)
    assert need.lead == "needed_beyond"
    assert need.sequences == 256 - round(0.55 * 256)
    assert need.further.gain == pytest.approx(math.log(2), rel=0.05)


def test_gains_add_up_to_the_measured_fall_of_the_loss() -> None:
    need = rnndiag.memory_need(ShiftRegister(3), copy_batches(6), cross_entropy, beyond=3)
    summed = need.within.gain + need.further.gain
    assert summed == pytest.approx(sum(group.gain for group in need.groups), rel=1e-9)
    assert need.gap <= 0.01


def test_same_seed_gives_the_same_answer_and_the_model_is_left_alone() -> None:
    model, batches = ShiftRegister(3), copy_batches(6, 8)
    model.head.weight.grad = torch.ones_like(model.head.weight)
    torch.manual_seed(5)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    first = rnndiag.memory_need(model, batches, cross_entropy, beyond=3, seed=4)
    drawn = torch.rand(3)
    second = rnndiag.memory_need(model, batches, cross_entropy, beyond=3, seed=4)
    assert first == second
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(3))
    assert model.training
    assert torch.equal(model.head.weight.grad, torch.ones_like(model.head.weight))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_window_at_which_the_loss_detaches_the_state_is_the_default_limit() -> None:
    def truncated(model: nn.Module, batch: Batch) -> Tensor:
        state, outputs = None, []
        for piece in batch["x"].split(4, 1):
            y, state = model.rnn(piece, state)  # type: ignore[operator]
            state = state.detach()
            outputs.append(y)
        logits = model.head(torch.cat(outputs, 1))  # type: ignore[operator]
        flat = logits.flatten(0, 1)
        return functional.cross_entropy(flat, batch["y"].flatten(), ignore_index=IGNORED)

    need = rnndiag.memory_need(ShiftRegister(3), copy_batches(6), truncated)
    assert (need.beyond, need.limit) == (4, "window")
    assert need.lead == "needed_beyond"
    assert "window of 4 steps" in need.sentence


class LastState(nn.Module):
    """A fused layer over packed sequences; the head reads the last state."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(2, 6, batch_first=True)
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        logits: Tensor = self.head(self.rnn(packed)[1][-1])
        return logits


def test_packed_sequences_of_different_length_with_one_output_each() -> None:
    torch.manual_seed(0)
    batches = []
    for _ in range(8):
        lengths = torch.randint(9, 13, (64,))
        cue = torch.randint(0, 2, (64,))
        x = 0.1 * torch.randn(64, 12, 2)
        x[torch.arange(64), 0, cue] += 2
        batches.append({"x": x, "lengths": lengths, "y": cue})

    def loss_fn(model: nn.Module, batch: Batch) -> Tensor:
        return functional.cross_entropy(model(batch["x"], batch["lengths"]), batch["y"])

    with torch.no_grad():
        model = LastState()
        for weight in model.rnn.parameters():
            weight.mul_(0.2)  # forgets within a step or two
    need = rnndiag.memory_need(model, batches, loss_fn, beyond=6)
    assert need.lead == "needed_beyond"
    assert need.max_lag == 11
    assert need.further.lower > 0.2


def test_overlapping_windows_of_one_series_count_as_blocks() -> None:
    series = torch.randint(0, 2, (8 * 64 + 14,), generator=torch.Generator().manual_seed(1))
    windows = series.unfold(0, 14, 2)
    batches = []
    for symbols in windows.split(32)[:8]:
        target = torch.full_like(symbols, IGNORED)
        target[:, 6:] = symbols[:, :8]
        batches.append({"x": functional.one_hot(symbols, 2).float(), "y": target})
    need = rnndiag.memory_need(ShiftRegister(3), batches, cross_entropy, beyond=3)
    n_test = 32 * (8 - 3 - 1)
    assert need.sequences == math.ceil(n_test / 7)
    assert "overlapping" in " ".join(need.notes)


@pytest.mark.parametrize(
    ("model", "loss_fn", "words"),
    [
        (nn.Sequential(nn.Linear(2, 2)), None, "training_step"),
        (nn.Linear(2, 2), lambda model, batch: model(batch["x"]).sum(), "No nn.RNN"),
    ],
)
def test_models_without_a_recurrent_layer_are_refused(
    model: nn.Module, loss_fn: Callable[[nn.Module, Any], Tensor] | None, words: str
) -> None:
    with pytest.raises((BadArgument, NotSupported), match=words):
        rnndiag.memory_need(model, copy_batches(2, 2), loss_fn)


def test_numbers_that_are_not_finite_are_refused_with_their_batch() -> None:
    batches = copy_batches(2, 3, sequences=8)
    batches[1]["x"][0, 3] = math.nan
    with pytest.raises(BadArgument, match=r"batch 1 .* not finite"):
        rnndiag.memory_need(ShiftRegister(2), batches, cross_entropy)


def test_inputs_that_never_change_are_refused() -> None:
    batches = copy_batches(2, 6, sequences=8)
    for batch in batches:
        batch["x"] = torch.ones_like(batch["x"])
    with pytest.raises(NotSupported, match="same at every step"):
        rnndiag.memory_need(ShiftRegister(2), batches, cross_entropy)


def test_model_that_is_frozen_is_measured_and_stays_frozen() -> None:
    model = ShiftRegister(3).requires_grad_(False)
    need = rnndiag.memory_need(model, copy_batches(6, 6, sequences=16), cross_entropy, beyond=3)
    assert need.lead == "needed_beyond"
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_batches_of_odd_sizes_and_lengths_are_measured_together() -> None:
    batches = [
        batch
        for sequences, length in ((17, 14), (5, 9), (32, 11), (23, 14), (9, 20), (30, 14), (31, 8))
        for batch in copy_batches(6, 1, length, sequences)
    ]
    need = rnndiag.memory_need(ShiftRegister(3), batches, cross_entropy, beyond=3)
    assert need.lead == "needed_beyond"
    assert need.peak_lag == 6


def test_sequences_of_two_steps_are_not_resolved() -> None:
    batches = noise_batches(6, length=2, sequences=16)
    assert rnndiag.memory_need(ShiftRegister(2), batches, cross_entropy).lead == "unresolved"


def test_bidirectional_layer_is_refused() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.GRU(2, 3, batch_first=True, bidirectional=True)

    def loss_fn(model: nn.Module, batch: Batch) -> Tensor:
        loss: Tensor = model.rnn(batch["x"])[0].square().mean()  # type: ignore[operator]
        return loss

    with pytest.raises(NotSupported, match="bidirectional"):
        rnndiag.memory_need(Both(), copy_batches(2, 2), loss_fn)


@pytest.mark.parametrize(
    "arguments",
    [
        {"beyond": 0},
        {"beyond": 2.5},
        {"max_lag": 0},
        {"layer": "head"},
        {"layer": ""},
        {"model": None},
        {"batches": 3},
    ],
)
def test_wrong_arguments_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises((BadArgument, NotSupported)):
        rnndiag.memory_need(
            **{
                "model": ShiftRegister(2),
                "batches": copy_batches(2, 2),
                "loss_fn": cross_entropy,
                **arguments,
            }
        )


def test_batch_that_comes_twice_is_refused() -> None:
    batches = noise_batches(3)
    with pytest.raises(BadArgument, match="Batches 1 and 3"):
        rnndiag.memory_need(ShiftRegister(2), [*batches, batches[1]], cross_entropy)


class ShiftStep(nn.Module):
    """One step of a shift register, without a layer of torch."""

    def __init__(self, of: ShiftRegister) -> None:
        super().__init__()
        self.weights = nn.ParameterList([of.rnn.weight_ih_l0, of.rnn.weight_hh_l0])

    def forward(self, x: Tensor, state: Tensor) -> Tensor:
        return torch.relu(x @ self.weights[0].T + state @ self.weights[1].T)


@pytest.mark.parametrize(("held", "lag"), [(3, 6), (6, 4)])
def test_loop_over_a_step_module_is_measured_as_the_layer_that_does_the_same(
    held: int, lag: int
) -> None:
    fused = ShiftRegister(held)
    model = nn.Module()
    model.cell, model.head = ShiftStep(fused), fused.head

    def loss_fn(own: Any, batch: Batch) -> Tensor:
        h, logits = batch["x"].new_zeros(32, 2 * held + 2), []
        for x in batch["x"].unbind(1):
            h = own.cell(x, rnndiag.carry(h))
            logits.append(own.head(h))
        flat = torch.stack(logits, 1).flatten(0, 1)
        return functional.cross_entropy(flat, batch["y"].flatten(), ignore_index=IGNORED)

    need = rnndiag.memory_need(model, copy_batches(lag), loss_fn, beyond=3)
    same = rnndiag.memory_need(fused, copy_batches(lag), cross_entropy, beyond=3)
    assert need.lead == same.lead
    assert need.further == pytest.approx(same.further, rel=1e-4, abs=1e-6)
    assert need.present == pytest.approx(same.present, rel=1e-4, abs=1e-6)
    assert (need.used_memory, need.burn_in) == (same.used_memory, same.burn_in)


def test_carry_loop_without_a_module_for_its_step_is_refused_with_what_to_do() -> None:
    model = nn.Linear(4, 2)

    def loss_fn(own: nn.Module, batch: Batch) -> Tensor:
        h = batch["x"].new_zeros(32, 2)
        for x in batch["x"].unbind(1):
            h = torch.tanh(own(torch.cat([x, rnndiag.carry(h)], 1)))
        return functional.cross_entropy(h, batch["x"][:, 0].argmax(-1))

    with pytest.raises(NotSupported, match=r"move one step into an nn.Module"):
        rnndiag.memory_need(model, copy_batches(2, 2), loss_fn)


def test_layer_that_starts_from_a_given_state_says_that_nothing_before_was_tested() -> None:
    class Decoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.decoder = (
                nn.GRU(2, 4, batch_first=True),
                nn.GRU(2, 4, batch_first=True),
            )
            self.head = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            state = self.encoder(x[:, :7])[1]
            logits: Tensor = self.head(self.decoder(x[:, 7:], state)[0])
            return logits

    def loss_fn(own: nn.Module, batch: Batch) -> Tensor:
        return functional.cross_entropy(
            own(batch["x"]).flatten(0, 1), batch["x"][:, :7].argmax(-1).flatten()
        )

    need = rnndiag.memory_need(Decoder(), copy_batches(2, 6), loss_fn, beyond=3)
    assert need.layer == "decoder"
    assert "before its first step was not tested" in str(need)


def test_no_batches_are_refused() -> None:
    with pytest.raises(BadArgument, match="no batch"):
        rnndiag.memory_need(ShiftRegister(2), [], cross_entropy)
