"""Credit across the seam, as the callback records it, against chunks whose state was never detached."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fits import Net, Validated, assert_same, fit, loader
from torch import Tensor, nn

import rnndiag
from rnndiag.errors import BadArgument
from rnndiag.recorder.replay import call_memory as keeping
from rnndiag.run.run import Run

State = Any


def detached(state: State) -> State:
    return tuple(part.detach() for part in state) if isinstance(state, tuple) else state.detach()


class Carried(Net):
    """The state goes on from batch to batch, its gradient does not. Remembers what it was called with."""

    def __init__(self, cell: str = "LSTM", rate: float = 0.0, **options: Any) -> None:
        super().__init__(cell, **options)
        self.rate, self.state, self.seen = rate, None, []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        self.seen.append((x, y, self.state))
        out, state = self.rnn(x, self.state)
        self.state = detached(state)
        return (self.head(out) - y).square().mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), self.rate)


class Chunks(Net):
    """Each batch in chunks of 3 with a detached state, all of them in one backward pass."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        state, losses = None, []
        for part, target in zip(x.split(3, 1), y.split(3, 1), strict=True):
            out, state = self.rnn(part, state)
            state = detached(state)
            losses.append((self.head(out) - target).square().sum())
        return sum(losses[1:], losses[0])


class LastChunk(Chunks):
    """Only the last chunk has a loss."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        _, state = self.rnn(x[:, :3])
        out, _ = self.rnn(x[:, 3:], detached(state))
        return (self.head(out) - y[:, 3:]).square().mean()


class StepByChunk(Net):
    """Truncated BPTT as it is written by hand: an optimizer step after every chunk."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        optimizer, state = self.optimizers(), None
        for part, target in zip(x.split(3, 1), y.split(3, 1), strict=True):
            out, state = self.rnn(part, state)
            state = detached(state)
            optimizer.zero_grad()
            self.manual_backward((self.head(out) - target).square().mean())
            optimizer.step()


def recorded(
    make: Callable[[], Any], path: Path, steps: int = 6, data: Any = None, **options: Any
) -> tuple[Run, Any]:
    settings = {"every_n_steps": 5, "measures": ["contributions", "lags"], "strict": True}
    trainer = {
        key: options.pop(key) for key in ("val_check_interval", "precision") if key in options
    }
    callback = rnndiag.GradientDiagnostics(
        path / "run", **{**settings, **options}, screen=False, report=False
    )
    module = fit(make, [callback], steps, loader(steps) if data is None else data, **trainer)
    return rnndiag.open_run(path / "run"), module


def truth(module: Carried, kept: int = 2) -> dict[str, float]:
    """The last chunk's losses through `kept` more chunks, step by step and never detached."""
    chunks = module.seen[-kept - 1 :]
    x = torch.cat([x for x, _, _ in chunks], 1)
    T, own = x.shape[1], chunks[-1][0].shape[1]
    state, states = chunks[0][2], []
    for t in range(T):
        _, state = module.rnn(x[:, t : t + 1], state)
        states.append(state if isinstance(state, tuple) else (state,))
    out = torch.stack([s[0][-1] for s in states[-own:]], 1)
    loss = (module.head(out) - chunks[-1][1]).square().mean()
    parameters = list(module.rnn.parameters())
    full = torch.cat(
        [g.flatten() for g in torch.autograd.grad(loss, parameters, retain_graph=True)]
    )
    cut_out, _ = module.rnn(chunks[-1][0], chunks[-1][2])
    cut_loss = (module.head(cut_out) - chunks[-1][1]).square().mean()
    cut = torch.cat([g.flatten() for g in torch.autograd.grad(cut_loss, parameters)])
    credit = torch.zeros(T, T, dtype=torch.float64)
    (sent,) = torch.autograd.grad(loss, out, retain_graph=True)
    for u in range(T - own, T):
        h = states[u][0][-1]
        wanted = [part for s in range(u + 1) for part in states[s]]
        found = torch.autograd.grad(
            h,
            wanted,
            sent[:, u - T + own],
            retain_graph=True,
            materialize_grads=True,
            allow_unused=True,
        )
        parts = len(states[0])
        for s in range(u + 1):
            rows = torch.cat([*found[parts * s : parts * (s + 1)]], -1)
            credit[u, s] = rows.norm(dim=-1).mean()
    return {
        "seam_bias": float((full - cut).norm() / full.norm()),
        "seam_cosine": float(full @ cut / full.norm() / cut.norm()),
        "seam_share": float(credit[:, : T - own].sum() / credit.sum()),
    }


@pytest.mark.parametrize("cell", ["RNN", "GRU", "LSTM"])
def test_what_is_recorded_is_what_undetached_chunks_give(cell: str, tmp_path: Path) -> None:
    data = loader(6, dtype=torch.float64)
    run, module = recorded(lambda: Carried(cell).double(), tmp_path, data=data, precision="64-true")
    for quantity, value in truth(module).items():
        series = run[quantity, "rnn.l0"]
        assert series.steps.tolist() == [5]
        assert float(series.values[0]) == pytest.approx(value, rel=1e-6), quantity
    assert run["seam_steps", "rnn.l0"].values.tolist() == [[7, 14]]
    assert run["seam_credit", "rnn.l0"].values.shape == (1, 21)
    bias = run["seam_window_bias", "rnn.l0"].values[0]
    assert bias[0] == pytest.approx(1)
    assert bias[-1] < 1e-6
    assert "Cutting the state every 7 steps" in run.last.notes["seam"]["rnn.l0"]


def test_a_stack_is_cut_as_a_whole_and_dropout_is_drawn_again(tmp_path: Path) -> None:
    run, _ = recorded(lambda: Carried(rate=0.1, num_layers=2, dropout=0.4), tmp_path)
    assert run.layers_of("seam_bias") == ("rnn.l0..l1",)
    assert run["seam_steps", "rnn.l0..l1"].values.tolist() == [[7, 14]]
    assert "weights moved by" in run.last.notes["seam"]["rnn.l0..l1"]
    assert run.last.notes["stacks"] == {"rnn.l0..l1": ["rnn.l0", "rnn.l1"]}


@pytest.mark.parametrize(
    ("make", "steps"), [(Chunks, [3, 3]), (LastChunk, [4, 3]), (StepByChunk, [3, 3])]
)
def test_chunks_within_a_batch(make: Callable[[], Any], steps: list[int], tmp_path: Path) -> None:
    run, _ = recorded(make, tmp_path)
    series = run["seam_bias", "rnn.l0"]
    assert run["seam_steps", "rnn.l0"].values[0].tolist() == steps
    assert (series.values > 0.01).all()
    assert (series.values < 2).all()


@pytest.mark.parametrize("make", [Carried, Chunks, LastChunk, StepByChunk])
@pytest.mark.parametrize("options", [{"every_n_steps": 3}, {"every_n_steps": None}])
def test_training_is_not_touched(
    make: Callable[[], Any], options: dict[str, Any], tmp_path: Path
) -> None:
    build = (lambda: Carried(rate=0.1)) if make is Carried else make
    _, watched = recorded(build, tmp_path, **options)
    assert_same(watched, fit(build, steps=6, data=loader(6)))
    assert not watched.rnn._forward_hooks
    assert not watched.rnn._forward_pre_hooks


def test_nothing_is_kept_where_nothing_crosses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[object] = []
    monkeypatch.setattr(keeping.CallMemory, "_copy", lambda self, *rest: made.append(self))
    run, _ = recorded(Net, tmp_path)
    assert not made
    assert not [name for name in run.quantities if name.startswith("seam")]


def test_it_can_be_switched_off(tmp_path: Path) -> None:
    for number, off in enumerate(({"seam": 0}, {"measures": ["contributions"]})):
        run, _ = recorded(Carried, tmp_path / str(number), **off)
        assert not [name for name in run.quantities if name.startswith("seam")]
    with pytest.raises(BadArgument, match="seam is -1"):
        rnndiag.GradientDiagnostics(seam=-1)


def test_kept_chunks_stay_within_their_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # room for two calls, the one at hand among them
    monkeypatch.setattr(keeping, "MOST_BYTES", 3000)
    run, _ = recorded(lambda: Carried(rate=0.1), tmp_path)
    assert run["seam_steps", "rnn.l0"].values.tolist() == [[7, 7]]
    monkeypatch.setattr(keeping, "MOST_BYTES", 100)
    run, _ = recorded(Carried, tmp_path / "none")
    assert "may be kept" in run.last.notes["not_measured"]["seam of rnn.l0"]


def test_a_chunk_that_comes_out_differently_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with dropout on a GPU, whose masks cannot be drawn again."""
    monkeypatch.setattr("rnndiag.recorder.replay.kept_call.near", lambda *_: False)
    run, _ = recorded(Carried, tmp_path)
    assert "seam_bias" not in run.quantities
    assert "run again, does not come out" in run.last.notes["not_measured"]["seam of rnn.l0"]


class Resets(Carried):
    """A new sequence begins at every fourth batch."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        if batch_idx % 4 == 0:
            self.state = None
        return super().training_step(batch, batch_idx)


class Smaller(Carried):
    """The last batch has fewer sequences, so the state starts anew."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        if batch_idx == 5:
            x, y, self.state = x[:2], y[:2], None
        return super().training_step((x, y), batch_idx)


def test_a_new_sequence_has_no_chunks_before_it(tmp_path: Path) -> None:
    run, _ = recorded(Resets, tmp_path)
    assert run["seam_steps", "rnn.l0"].values.tolist() == [[7, 7]]
    run, _ = recorded(Smaller, tmp_path / "smaller")
    assert "seam_bias" not in run.quantities


class CarriedAndValidated(Validated, Carried):
    """Validation runs the same layer in between."""


def test_validation_in_between_changes_nothing(tmp_path: Path) -> None:
    data = loader(6, dtype=torch.float64)

    class WithValidation(CarriedAndValidated):
        def val_dataloader(self) -> Any:
            return loader(2, dtype=torch.float64, shuffle=False)

    run, module = recorded(
        lambda: WithValidation().double(),
        tmp_path,
        data=data,
        precision="64-true",
        val_check_interval=1,
    )
    assert float(run["seam_bias", "rnn.l0"].values[0]) == pytest.approx(
        truth(module)["seam_bias"], rel=1e-6
    )


def test_an_exception_of_the_person_leaves_no_hook(tmp_path: Path) -> None:
    class Breaks(Carried):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            loss = super().training_step(batch, batch_idx)
            if batch_idx == 4:
                raise RuntimeError("mine")
            return loss

    modules: list[Breaks] = []

    def make() -> Breaks:
        modules.append(Breaks())
        return modules[-1]

    with pytest.raises(RuntimeError, match="mine"):
        recorded(make, tmp_path)
    for part in modules[0].modules():
        assert not part._forward_hooks
        assert not part._forward_pre_hooks


def test_a_state_that_keeps_its_gradient_crosses_no_seam(tmp_path: Path) -> None:
    class Attached(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            x, y = batch
            first, state = self.rnn(x[:, :3])
            second, _ = self.rnn(x[:, 3:], state)
            return (self.head(torch.cat([first, second], 1)) - y).square().mean()

    run, _ = recorded(Attached, tmp_path)
    assert "seam_bias" not in run.quantities


def test_the_layer_may_be_the_module_itself(tmp_path: Path) -> None:
    """Its name is empty then, and its state may come by keyword."""
    import lightning.pytorch as L

    class Wrapped(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.deep = nn.ModuleDict({"rnn": nn.GRU(3, 5, batch_first=True)})
            self.state: Tensor | None = None

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            out, state = self.deep["rnn"](batch[0], hx=self.state)
            self.state = state.detach()
            return out.square().mean()

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), 0.1)

    run, _ = recorded(Wrapped, tmp_path)
    assert run["seam_steps", "deep.rnn.l0"].values.tolist() == [[7, 14]]
