"""How far an optimizer step moves the weights, and what is known of the optimizer before the first one."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as L
import pytest
import torch
from fits import HIDDEN, INPUTS, Net, fit
from torch import nn

import rnndiag
from rnndiag.recorder.facts.recurrent_weights import recurrent_weights


class Copies(L.Callback):
    """float64 copies of all parameters before and after every optimizer step."""

    def __init__(self) -> None:
        self.before: list[dict[str, torch.Tensor]] = []
        self.after: list[dict[str, torch.Tensor]] = []
        self.gradients: list[float] = []

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        self.before.append(self._copy(pl_module))

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *rest: Any) -> None:
        if len(self.after) < len(self.before):
            self.after.append(self._copy(pl_module))
            squares = [p.grad.double().square().sum() for p in pl_module.parameters()]
            self.gradients.append(float(torch.stack(squares).sum().sqrt()))

    @staticmethod
    def _copy(module: Any) -> dict[str, torch.Tensor]:
        return {name: p.detach().double().clone() for name, p in module.named_parameters()}


def _ratio(before: Any, after: Any, names: list[str]) -> float:
    change = sum(float((after[n] - before[n]).square().sum()) for n in names) ** 0.5
    size = sum(float(before[n].square().sum()) for n in names) ** 0.5
    return change / size


@pytest.mark.parametrize("options", [{}, {"num_layers": 2}, {"bidirectional": True}])
def test_ratio_of_every_step_matches_copies_of_the_weights(
    diagnostics: Any, options: dict[str, Any]
) -> None:
    callback, copies = diagnostics(measures=["contributions"]), Copies()
    module = fit(lambda: Net(**options), [callback, copies])
    run = rnndiag.open_run(callback.run_dir)
    layers = recurrent_weights(module)
    assert set(layers) == set(run.layers_of("update_ratio"))
    recurrent = {name for names in layers.values() for name in names}
    others = [name for name, _ in module.named_parameters() if name not in recurrent]
    for k, (before, after) in enumerate(zip(copies.before, copies.after, strict=True)):
        for layer, names in layers.items():
            found = run["update_ratio", layer].values[k]
            assert found == pytest.approx(_ratio(before, after, names), rel=1e-4)
            grown = sum(float(after[n].square().sum()) for n in names) ** 0.5
            first = sum(float(copies.before[0][n].square().sum()) for n in names) ** 0.5
            assert run["weight_norm", layer].values[k] == pytest.approx(grown, rel=1e-5)
            assert run["weight_growth", layer].values[k] == pytest.approx(grown / first, rel=1e-5)
        other = run["other_update_ratio"].values[k]
        assert other == pytest.approx(_ratio(before, after, others), rel=1e-4)


def test_gradient_norm_after_clipping_is_the_one_that_was_stepped_with(diagnostics: Any) -> None:
    callback, copies = diagnostics(measures=["contributions"]), Copies()
    fit(Net, [callback, copies], gradient_clip_val=0.01)
    run = rnndiag.open_run(callback.run_dir)
    assert run["stepped_gradient_norm"].values == pytest.approx(copies.gradients, rel=1e-5)
    assert (run["total_gradient_norm"].values > run["stepped_gradient_norm"].values).all()


def test_an_accumulated_step_is_measured_once(diagnostics: Any) -> None:
    callback, copies = diagnostics(measures=["contributions"]), Copies()
    module = fit(Net, [callback, copies], steps=3, accumulate_grad_batches=2, max_epochs=2)
    run = rnndiag.open_run(callback.run_dir)
    names = recurrent_weights(module)["rnn.l0"]
    wanted = [_ratio(b, a, names) for b, a in zip(copies.before, copies.after, strict=True)]
    assert run["update_ratio", "rnn.l0"].values == pytest.approx(wanted, rel=1e-4)


class Grouped(Net):
    """AdamW with a warm-up, whose biases do not decay."""

    def configure_optimizers(self) -> Any:
        named = dict(self.named_parameters())
        groups = [
            {"params": [p for n, p in named.items() if "bias" not in n], "weight_decay": 0.1},
            {"params": [p for n, p in named.items() if "bias" in n], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, 1e-2)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: (step + 1) / 10)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def test_the_setup_holds_the_configured_rate_and_the_decay_of_the_recurrent_weights(
    diagnostics: Any,
) -> None:
    callback = diagnostics(measures=["contributions"])
    fit(Grouped, [callback])
    setup = rnndiag.open_run(callback.run_dir).provenance["training"]
    assert setup["batch_size"] == 4
    assert setup["optimizers"][0]["kind"] == "AdamW"
    own = setup["recurrent"]["rnn.l0"]
    assert own == {
        "trainable": 4,
        "frozen": 0,
        "in_optimizer": 4,
        "optimizer": 0,
        "lr": 0.01,
        "weight_decay": 0.1,
    }


class Frozen(Net):
    """Only the head trains."""

    def __init__(self, knob: str) -> None:
        super().__init__()
        self.knob = knob
        if knob == "requires_grad":
            self.rnn.requires_grad_(False)

    def configure_optimizers(self) -> Any:
        own = self.head if self.knob == "add_to_optimizer" else self
        return torch.optim.Adam([p for p in own.parameters() if p.requires_grad], 1e-2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.rnn(x)[0]
        return self.head(y.detach() if self.knob == "use_in_loss" else y)


@pytest.mark.parametrize("knob", ["requires_grad", "add_to_optimizer", "use_in_loss"])
def test_a_recurrence_that_does_not_train_gets_a_run_a_cause_and_a_page(
    diagnostics: Any, knob: str
) -> None:
    callback = diagnostics(report=True)
    fit(lambda: Frozen(knob), [callback], steps=24)
    found = rnndiag.diagnose(rnndiag.open_run(callback.run_dir))
    assert found.state == "broken"
    assert found.causes[0].name == "frozen_or_unused"
    assert found.causes[0].layer == "rnn.l0"
    assert found.causes[0].remedy is not None
    assert found.causes[0].remedy.knob == knob
    assert (callback.run_dir / "report.html").is_file()


def test_cells_and_named_layers_are_found_before_anything_runs() -> None:
    model = nn.ModuleDict(
        {
            "encoder": nn.GRU(INPUTS, HIDDEN, bidirectional=True, bias=False),
            "cell": nn.LSTMCell(INPUTS, HIDDEN),
            "head": nn.Linear(HIDDEN, 1),
        }
    )
    assert recurrent_weights(model) == {
        "encoder.l0": ["encoder.weight_ih_l0", "encoder.weight_hh_l0"],
        "encoder.l0.reverse": ["encoder.weight_ih_l0_reverse", "encoder.weight_hh_l0_reverse"],
        "cell": ["cell.weight_ih", "cell.weight_hh", "cell.bias_ih", "cell.bias_hh"],
    }
