"""The proofs pass on what is right and fail on every planted fault, one by one."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from reference import STEPS, draw_state, draw_weights
from reference import unroll as unroll_by_hand

from rnndiag.engine.adjoints import Adjoints, adjoints
from rnndiag.engine.cells import find_cell
from rnndiag.engine.contributions import contribution_norms
from rnndiag.engine.layer_run import LayerRun
from rnndiag.engine.proof import BOUNDS, Proof, prove, recursion_residual
from rnndiag.engine.unroll import unroll
from rnndiag.errors import BadArgument

T, B, I, H = 12, 3, 2, 4


def proven_run(cell: str = "gru", dtype: torch.dtype = torch.float64) -> LayerRun:
    """A layer run with autograd's own gradients of its weights, inputs and initial state."""
    weights = {k: v.to(dtype) for k, v in draw_weights(cell, I, H).items()}
    initial = tuple(part.to(dtype) for part in draw_state(cell, B, H))
    draw = torch.Generator().manual_seed(0)
    inputs = torch.randn(T, B, I, dtype=dtype, generator=draw)
    h_only = torch.randn(T, B, H, dtype=dtype, generator=draw)
    direct = (h_only, *[torch.zeros(T, B, H, dtype=dtype) for _ in initial[1:]])
    run = unroll(find_cell(cell), weights, inputs, direct, initial)
    leaves = {key: value.clone().requires_grad_() for key, value in weights.items()}
    x = inputs.clone().requires_grad_()
    outputs, _, tape = unroll_by_hand(cell, leaves, x, initial)
    (outputs * h_only).sum().backward()
    return replace(
        run,
        gradients={key: value.grad for key, value in leaves.items()},
        input_gradient=x.grad,
        initial_gradient=tuple(part.grad for part in tape.initial),
    )


def proof_of(run: LayerRun, adj: Adjoints) -> Proof:
    return prove([run], [(adj, contribution_norms(adj))])


@pytest.mark.parametrize("cell", STEPS)
def test_what_is_right_is_exact(cell: str) -> None:
    proof = prove([proven_run(cell)])
    assert proof.verdict == "exact", proof.reasons
    assert proof.worst <= 1e-12
    layer = proof.layers["layer"]
    residuals = (layer.recursion, layer.forward, layer.input_gradient, layer.initial_gradient)
    assert max(residuals) <= 1e-12


@pytest.mark.parametrize("cell", STEPS)
def test_single_precision_stays_inside_its_bound(cell: str) -> None:
    proof = prove([proven_run(cell, torch.float32)])
    assert proof.verdict == "exact", proof.reasons
    assert proof.worst <= 1e-5


def test_time_permuted_adjoints_keep_the_sum_and_fail_the_recursion() -> None:
    """The reason for proof 2: with a linear net and equal inputs the sum law cannot see the order."""
    run = proven_run("lstm")
    order = torch.randperm(T, generator=torch.Generator().manual_seed(1))
    adj = adjoints(run)
    assert adj.a_ih is not None
    assert adj.a_hh is not None
    shuffled_run = replace(
        run,
        inputs=run.inputs[order],
        states=tuple(part[order] for part in run.states),
        direct=tuple(part[order] for part in run.direct),
        input_gradient=None,
    )
    before = tuple(part[order] for part in run.previous())

    class Shuffled(type(shuffled_run)):  # type: ignore[misc]
        """A record whose time axis is permuted consistently: every pair (a, h_{t-1}) stays together."""

        def previous_part(self, p: int, start: int = 0, stop: int | None = None) -> torch.Tensor:
            return before[p][start:stop]

        def previous_at(self, times: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return tuple(part[times] for part in before)

    shuffled = Shuffled(**{f: getattr(shuffled_run, f) for f in run.__dataclass_fields__})
    wrong = Adjoints(
        shuffled,
        tuple(part[order] for part in adj.parts),
        adj.a_ih[order],
        adj.a_hh[order],
        adj.initial,
    )
    proof = proof_of(shuffled, wrong)
    assert proof.worst <= 1e-12
    assert proof.layers["layer"].recursion > 0.1
    assert proof.verdict == "inexact"
    assert any("recursion" in reason for reason in proof.reasons)


def test_a_missed_call_is_seen_by_the_sum_law() -> None:
    run = proven_run()
    doubled = replace(run, gradients={k: 2 * g for k, g in run.gradients.items()})
    proof = prove([doubled])
    assert proof.verdict == "inexact"
    assert proof.residual["layer.weight_hh"] > 0.01
    assert any("weight_hh" in reason for reason in proof.reasons)


def test_two_calls_that_share_a_weight_are_added_up() -> None:
    first, second = proven_run(), proven_run()
    shared = {key: f"gru.{key}" for key in first.weights}
    both = {key: first.gradients[key] + second.gradients[key] for key in first.weights}
    runs = [
        replace(run, name=name, gradients=both, parameters=shared)
        for run, name in ((first, "gru.l0"), (second, "gru.l0#2"))
    ]
    assert prove(runs).verdict == "exact"
    assert prove(runs[:1]).verdict == "inexact"


def test_states_of_other_weights_are_seen_by_the_forward_error() -> None:
    run = proven_run()
    moved = replace(run, weights={k: w * 1.01 for k, w in run.weights.items()})
    proof = prove([moved])
    assert proof.layers["layer"].forward > BOUNDS[torch.float64].forward
    assert any("recomputed" in reason for reason in proof.reasons)


@pytest.mark.parametrize("field", ["input_gradient", "initial_gradient"])
def test_gradients_that_autograd_gave_elsewhere_are_checked(field: str) -> None:
    run = proven_run()
    value = getattr(run, field)
    wrong = value * 1.1 if isinstance(value, torch.Tensor) else tuple(v * 1.1 for v in value)
    assert prove([replace(run, **{field: wrong})]).verdict == "inexact"


def test_without_gradients_nothing_is_claimed() -> None:
    proof = prove([replace(proven_run(), gradients={})])
    assert proof.verdict == "unverified"
    assert proof.worst != proof.worst


def test_a_note_makes_it_inexact_and_is_the_reason() -> None:
    proof = prove([replace(proven_run(), notes=("other dropout masks",))])
    assert proof.verdict == "inexact"
    assert proof.reasons == ("other dropout masks",)


def test_a_gradient_from_outside_is_named_and_no_failure() -> None:
    run = proven_run()
    penalty = {**run.gradients, "weight_hh": run.gradients["weight_hh"] + 0.1}
    outside = {"layer.weight_hh": "gradient from outside the recurrent calls"}
    proof = prove([replace(run, gradients=penalty)], outside=outside)
    assert proof.verdict == "exact"
    assert "outside" in proof.reasons[0]
    assert prove([replace(run, gradients=penalty)]).verdict == "inexact"


def test_a_nan_never_passes() -> None:
    run = proven_run()
    broken = {**run.gradients, "weight_hh": run.gradients["weight_hh"] * float("nan")}
    assert prove([replace(run, gradients=broken)]).verdict == "inexact"
    assert run.input_gradient is not None
    lost = replace(run, input_gradient=run.input_gradient * float("nan"))
    assert prove([lost]).verdict == "inexact"


@pytest.mark.parametrize("size", [1e-28, 1e-20, 1e20, 1e30])
@pytest.mark.parametrize("cell", ["elman_tanh", "lstm", "gru"])
def test_very_small_and_very_large_gradients_are_proved_too(cell: str, size: float) -> None:
    """Squares of these leave single precision: what is right must not fail, and what is wrong must not pass."""
    run = proven_run(cell, torch.float32)
    direct = tuple(size * part for part in run.direct)
    for factor, verdict in ((1.0, "exact"), (2.0, "inexact")):
        gradients = {key: factor * size * g for key, g in run.gradients.items()}
        scaled = replace(
            run, direct=direct, gradients=gradients, input_gradient=None, initial_gradient=None
        )
        assert prove([scaled]).verdict == verdict


def test_large_states_are_recomputed_without_overflow() -> None:
    run = proven_run("elman_relu", torch.float32)
    states = tuple(1e25 * part for part in run.states)
    weights = {k: w if k.startswith("weight") else 1e25 * w for k, w in run.weights.items()}
    initial = tuple(1e25 * part for part in run.initial)
    large = replace(
        run, states=states, weights=weights, inputs=1e25 * run.inputs, initial=initial, gradients={}
    )
    assert prove([large]).layers["layer"].forward <= 1e-6
    off = replace(large, states=tuple(1.1 * part for part in states))
    assert prove([off]).layers["layer"].forward > 0.05


def test_a_gradient_that_dies_out_below_the_normal_range_is_no_failure() -> None:
    """Adjoints of 1e-42 keep no digits: a difference of them is not a fault."""
    steps, weights = 400, {k: v.float() for k, v in draw_weights("elman_tanh", I, H).items()}
    weights["weight_hh"] *= 0.3
    direct = torch.zeros(steps, B, H)
    direct[-1] = 1.0
    inputs = torch.randn(steps, B, I, generator=torch.Generator().manual_seed(4))
    run = unroll(find_cell("elman_tanh"), weights, inputs, (direct,))
    adj = adjoints(run)
    size = adj.state.abs().amax((1, 2))
    assert bool(((size > 0) & (size < 1e-38)).any())
    assert max(recursion_residual(run, adj, seed) for seed in range(100)) <= 1e-5


def test_a_layer_that_nothing_holds_is_unverified_and_named() -> None:
    """Its weights are frozen: an error in its e_t would show nowhere."""
    frozen = replace(
        proven_run(), name="frozen", gradients={}, input_gradient=None, initial_gradient=None
    )
    wrong = replace(frozen, direct=tuple(0.1 * part for part in frozen.direct))
    proof = prove([proven_run(), wrong])
    assert proof.verdict == "unverified"
    assert any("frozen" in reason for reason in proof.reasons)
    unused = replace(frozen, direct=tuple(torch.zeros_like(part) for part in frozen.direct))
    assert prove([proven_run(), unused]).verdict == "exact"


def named(run: LayerRun) -> LayerRun:
    return replace(run, parameters={key: f"rnn.{key}" for key in run.weights})


def test_penalties_explain_what_they_leave_and_no_more() -> None:
    run = named(proven_run("lstm"))
    for l2, l1 in ((0.1, 0.0), (0.0, 0.1), (0.2, 0.1)):
        added = {
            k: g + l2 * run.weights[k] + l1 * run.weights[k].sign()
            for k, g in run.gradients.items()
        }
        proof = prove([replace(run, gradients=added)])
        assert proof.verdict == "exact"
        assert len(proof.reasons) == 4
    hidden = {k: 1.02 * g + 100 * run.weights[k] for k, g in run.gradients.items()}
    assert prove([replace(run, gradients=hidden)]).verdict == "inexact"


def test_only_the_bias_of_the_same_side_speaks_for_a_weight() -> None:
    """A GRU's a_ih and a_hh differ: a_ih's bias says nothing of W_hh."""
    run = named(proven_run("gru"))
    wrong = {k: g + 0.1 if k.endswith("hh") else g for k, g in run.gradients.items()}
    assert prove([replace(run, gradients=wrong)]).verdict == "inexact"
    tied = {k: g + 0.1 if k == "weight_hh" else g for k, g in run.gradients.items()}
    assert prove([replace(run, gradients=tied)]).verdict == "exact"


def test_an_unknown_precision_is_told() -> None:
    with pytest.raises(BadArgument, match="complex64"):
        prove([proven_run()], dtype=torch.complex64)


def test_a_cell_that_wrongly_claims_to_be_elementwise_is_caught() -> None:
    """The diagonal path on a cell that mixes its units: the recursion's J^T comes from autograd and disagrees."""
    cell = find_cell("elman_tanh")
    assert cell.pointwise is not None

    def mixing(a_ih: torch.Tensor, a_hh: torch.Tensor, state: tuple[torch.Tensor, ...]) -> object:
        return (torch.softmax(a_ih + a_hh, -1),)

    liar = replace(cell, name="liar", pointwise=mixing)
    run = proven_run("elman_tanh")
    again = unroll(liar, run.weights, run.inputs, run.direct, run.initial)
    proof = prove([again])
    assert proof.layers["layer"].recursion > 0.01
    assert proof.verdict == "inexact"


def test_random_times_leave_the_global_generators_alone() -> None:
    state = torch.get_rng_state()
    prove([proven_run()])
    torch.manual_seed(3)
    before = torch.get_rng_state()
    prove([replace(proven_run())], seed=5)
    assert torch.equal(before, torch.get_rng_state())
    torch.set_rng_state(state)
