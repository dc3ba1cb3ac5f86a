"""Between recordings: what every step costs, what the black box keeps of it, and loops that are left alone."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import pytest
import torch
from fits import HIDDEN, INPUTS, Net, assert_same, fit
from torch import Tensor, nn

import rnndiag
from rnndiag.engine.contributions import contribution_norms
from rnndiag.engine.proof import prove
from rnndiag.recorder.facts.gradient_norms import total_norm
from rnndiag.recorder.faults import Faults
from rnndiag.recorder.replay.kept_call import replay
from rnndiag.recorder.replay.light_hooks import MANY, LightHooks
from rnndiag.recorder.schedule.overhead import Overhead

JUMP = 20


def watched(module: nn.Module) -> tuple[LightHooks, Faults]:
    faults = Faults(strict=True)
    light_hooks = LightHooks(faults, Overhead())
    light_hooks.attach(module)
    light_hooks.armed = True
    return light_hooks, faults


def true_gradients(module: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad for name, p in module.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_a_kept_call_run_again_is_that_of_the_step(dropout: float) -> None:
    model = nn.ModuleDict({"rnn": nn.LSTM(INPUTS, HIDDEN, 2, batch_first=True, dropout=dropout)})
    light_hooks, faults = watched(model)
    x = torch.randn(4, 6, INPUTS)
    out, _ = model["rnn"](x)
    torch.rand(3)  # the stream goes on before the calls are run again
    before = torch.get_rng_state()
    out.square().sum().backward()
    (seen,) = replay(light_hooks.calls, true_gradients(model), faults)
    assert torch.equal(torch.get_rng_state(), before)
    made = [(adj, contribution_norms(adj)) for adj in map(rnndiag.adjoints, seen.layer_runs)]
    proof = prove(seen.layer_runs, made)
    assert len(seen.layer_runs) == 2
    assert proof.verdict == "exact", proof.reasons
    assert light_hooks.overhead.spent > 0


def test_hooks_of_others_on_what_a_layer_returns_still_run() -> None:
    model = nn.ModuleDict({"rnn": nn.GRU(INPUTS, HIDDEN)})
    light_hooks, _ = watched(model)
    x = torch.randn(5, 2, INPUTS)
    model["rnn"](x)[0].sum().backward()
    plain = model["rnn"].bias_hh_l0.grad.clone()
    model.zero_grad()
    light_hooks.forget()
    y, _ = model["rnn"](x)
    seen: list[Tensor] = []
    handle = y.register_hook(seen.append)
    y.register_hook(lambda gradient: gradient * 2)
    y.sum().backward()
    handle.remove()
    assert len(seen) == 1
    assert list(light_hooks.calls[0].gradients) == [0]
    assert torch.equal(model["rnn"].bias_hh_l0.grad, 2 * plain)


@pytest.mark.filterwarnings("ignore:You are using .torch.load.:FutureWarning")  # torch 2.4
def test_copies_and_pickles_of_a_watched_model_are_not_watched() -> None:
    model = nn.ModuleDict({"rnn": nn.LSTM(INPUTS, HIDDEN, 2, dropout=0.1)})
    light_hooks, _ = watched(model)
    for stranger in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        stranger["rnn"](torch.randn(3, 2, INPUTS))[0].sum().backward()
    assert light_hooks.calls == []


def test_a_layer_called_step_by_step_is_left_alone() -> None:
    model = nn.ModuleDict({"rnn": nn.RNN(INPUTS, HIDDEN), "other": nn.RNN(INPUTS, HIDDEN)})
    light_hooks, _ = watched(model)
    for _ in range(MANY + 1):
        model["rnn"](torch.randn(1, 2, INPUTS))
    model["other"](torch.randn(1, 2, INPUTS))
    assert [call.name for call in light_hooks.calls] == ["other"]
    assert not model["rnn"]._forward_hooks
    light_hooks.attach(nn.ModuleDict({"rnn": model["rnn"]}))  # the layers have changed
    assert not model["rnn"]._forward_hooks


class StepByStep(Net):
    """A fused layer called for one step at a time, its state scaled in between."""

    def forward(self, x: Tensor) -> Tensor:
        state, outs = None, []
        for now in x.split(1, 1):
            out, state = self.rnn(now, state)
            state = tuple(rnndiag.scale_gradient(part, 0.9) for part in state)
            outs.append(out)
        return self.head(torch.cat(outs, 1))


def test_calls_whose_state_is_scaled_in_between_are_measured_as_one_recurrence(
    diagnostics: Any,
) -> None:
    callback = diagnostics(every_n_steps=2)
    assert_same(fit(StepByStep, [callback]), fit(StepByStep))
    run = rnndiag.open_run(callback.run_dir)
    assert list(run.layers) == ["rnn.l0"]
    first = run.recordings[0]
    assert first.verdict == "exact", first.reasons
    assert first["credit_profile", "rnn.l0"].sizes["lag"] == 7
    assert first.get("window_bias", "rnn.l0") is not None


def test_the_account_holds_what_every_step_takes(diagnostics: Any) -> None:
    callback = diagnostics(schedule=lambda step: step == 0, measures=["contributions"])
    caught: list[Overhead] = []

    class Look(Net):
        def on_train_end(self) -> None:
            caught.append(callback._fit.overhead)

    fit(Look, [callback], steps=12)
    (overhead,) = caught
    assert overhead.plain == 11
    assert 0 < overhead.light < overhead.spent
    assert overhead.light_seconds == pytest.approx(overhead.light / 11)


@pytest.mark.parametrize("order", [2.0, math.inf])
def test_the_norm_is_that_of_all_gradients(order: float) -> None:
    gradients = [torch.randn(3, 4), torch.randn(5), torch.randn(2, 2).double()]
    whole = torch.cat([g.double().flatten() for g in gradients])
    found = total_norm(gradients, order)
    assert float(found) == pytest.approx(float(whole.norm(order)), rel=1e-6)
    many = [torch.randn(3) for _ in range(100)]
    assert float(total_norm(many)) == pytest.approx(float(torch.cat(many).norm()), rel=1e-6)
    assert total_norm([]) is None
    assert total_norm([torch.zeros(0), torch.ones(3)], math.inf) == 1.0
    assert not math.isfinite(total_norm([torch.tensor([1.0, math.nan])]))


class ClipsByHand(Net):
    """A manual loop that clips with torch's own function."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward((self(batch[0]) - batch[1]).square().mean())
        if batch_idx % 2:
            torch.nn.utils.clip_grad_norm_(self.parameters(), 0.01)
        optimizer.step()


class ClipsInItsHook(Net):
    """An automatic loop with a clipping of its own."""

    def configure_gradient_clipping(self, optimizer: Any, *_: Any, **__: Any) -> None:
        torch.nn.utils.clip_grad_norm_(self.parameters(), 0.01)


@pytest.mark.parametrize(("kind", "share"), [(ClipsByHand, 0.5), (ClipsInItsHook, 1.0), (Net, 0.0)])
def test_clipping_by_the_program_itself_is_seen(kind: Any, share: float, diagnostics: Any) -> None:
    callback = diagnostics(measures=["contributions"])
    assert_same(fit(kind, [callback]), fit(kind))
    run = rnndiag.open_run(callback.run_dir)
    (story,) = [c for r in run.outlines for c in r.notes.get("clipping", [])]
    assert story["share"] == share
    if share:
        assert story["threshold"] == pytest.approx(0.01, rel=1e-3)
        assert story["median"] > 0.05  # the norm before clipping
        assert story["word"] == "step limiter"
    else:
        assert story["word"] == "not clipped"


class LossAlone(Net):
    """A loss that is infinite at one step, though its gradient is not."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        return loss + math.inf if self.global_step == 2 else loss


def test_a_loss_alone_that_is_not_finite_is_told(diagnostics: Any) -> None:
    callback = diagnostics(every_n_steps=100, measures=["contributions"])
    fit(LossAlone, [callback], steps=8, max_epochs=4)
    run = rnndiag.open_run(callback.run_dir)
    assert run.steps_of("train").tolist() == [0, 3]
    told = run.at(3).notes["black_box"]
    assert (told["kind"], told["step"]) == ("loss", 2)
    assert "The loss is inf at step 2" in told["sentence"]


class BrokenLoop(Net):
    """Cells in a Python loop; the gradient is not a number at one step."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRUCell(INPUTS, HIDDEN)

    def forward(self, x: Tensor) -> Tensor:
        state, outs = x.new_zeros(len(x), HIDDEN), []
        for now in x.unbind(1):
            state = self.rnn(now, state)
            outs.append(state)
        return self.head(torch.stack(outs, 1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        return loss * math.nan if self.global_step == 2 else loss


def test_an_accident_in_a_loop_is_told_with_the_next_step_alone(diagnostics: Any) -> None:
    callback = diagnostics(every_n_steps=100, measures=["contributions"])
    fit(BrokenLoop, [callback], steps=9, max_epochs=4)
    run = rnndiag.open_run(callback.run_dir)
    assert run.steps_of("train").tolist() == [0, 3]
    told = run.at(3).notes["black_box"]
    assert told["step"] == 2
    assert "loops over time" in told["sentence"]


def test_nothing_is_measured_that_would_not_be_stored(
    diagnostics: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rnndiag.store.writer import RunWriter

    monkeypatch.setattr(RunWriter, "wants", lambda self, step: step % 2 == 0)
    callback = diagnostics(measures=["contributions"])
    fit(Net, [callback])
    assert rnndiag.open_run(callback.run_dir).steps_of("train").tolist() == [0, 2]


def test_sentences_speak_of_hours(diagnostics: Any, capsys: Any) -> None:
    callback = diagnostics(time_unit=("h", 0.5), stride=4)
    fit(lambda: Net("RNN"), [callback], steps=6, max_epochs=2, enable_progress_bar=True)
    run = rnndiag.open_run(callback.run_dir)
    causes = [r.notes["cause"]["rnn.l0"] for r in run.outlines if "cause" in r.notes]
    assert all(" h)" in cause["sentence"] for cause in causes)
    (found,) = [f for f in rnndiag.check(run) if f.check == "reach"]
    assert f"({found.value * 2:.3g} h)" in found.message
    assert " h)" in capsys.readouterr().out
