"""Training is not touched: on every path, weights with and without the callback are the same bit for bit."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import fits
import lightning.pytorch as L
import pytest
import torch
from bf16 import skip_without_bf16_lstm
from fits import HIDDEN, INPUTS, Net, assert_same, fit
from lightning.pytorch.callbacks import Callback, StochasticWeightAveraging
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

import rnndiag


class TwoOptimizers(Net):
    """Manual optimization: two nets, two optimizers, three backward passes a batch."""

    def __init__(self) -> None:
        super().__init__("GRU")
        self.other = nn.RNN(INPUTS, HIDDEN, batch_first=True)
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        first, second = self.optimizers()
        first.zero_grad()
        out = self(x)
        self.manual_backward((out - y).square().mean(), retain_graph=True)
        self.manual_backward(out.square().mean() * 0.1)
        self.clip_gradients(first, 0.5, "norm")
        first.step()
        second.zero_grad()
        self.manual_backward(self.other(x)[0].square().mean())
        second.step()

    def configure_optimizers(self) -> Any:
        mine = [*self.rnn.parameters(), *self.head.parameters()]
        return torch.optim.Adam(mine, 1e-2), torch.optim.SGD(self.other.parameters(), 0.1)


class RawLoop(Net):
    """Manual optimization that goes past the Trainer: no hook of its own is called."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer = self.optimizers(use_pl_optimizer=False)
        optimizer.zero_grad()
        (self(batch[0]) - batch[1]).square().mean().backward()
        optimizer.step()


class Chunked(Net):
    """Truncated BPTT by hand: chunks with a carried, detached state, a step a chunk."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer, carried = self.optimizers(), None
        for x, y in zip(batch[0].split(3, 1), batch[1].split(3, 1), strict=True):
            out, carried = self.rnn(x, carried)
            carried = tuple(part.detach() for part in carried)
            optimizer.zero_grad()
            self.manual_backward((self.head(out) - y).square().mean())
            optimizer.step()


class Carried(Net):
    """The state goes from batch to batch, detached."""

    last: tuple[Tensor, Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        out, last = self.rnn(x, self.last)
        self.last = tuple(part.detach() for part in last)
        return self.head(out)


class Checkpointed(Net):
    """The layer is run again in the backward pass."""

    reentrant = False

    def forward(self, x: Tensor) -> Tensor:
        x = x.clone().requires_grad_()
        return self.head(checkpoint(lambda v: self.rnn(v)[0], x, use_reentrant=self.reentrant))


class CheckpointedReentrant(Checkpointed):
    """The older kind."""

    reentrant = True


class Compiled(Net):
    """A compiled model (its recurrent frames are left to torch's own kernels)."""

    def __init__(self) -> None:
        super().__init__()
        self.compiled = torch.compile(self.head, backend="eager")

    def forward(self, x: Tensor) -> Tensor:
        return self.compiled(self.rnn(x)[0])


class Looped(Net):
    """Cells in a Python loop."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTMCell(INPUTS, HIDDEN)

    def forward(self, x: Tensor) -> Tensor:
        carried, outs = None, []
        for now in x.unbind(1):
            carried = self.rnn(now, carried)
            outs.append(carried[0])
        return self.head(torch.stack(outs, 1))


class OwnStep(nn.Module):
    """A step of a recurrence whose arguments do not say so."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(INPUTS + HIDDEN, HIDDEN)

    def forward(self, x: Tensor, memory_of_it_all: Tensor) -> Tensor:
        return torch.tanh(self.mix(torch.cat([x, memory_of_it_all], 1)))


class OwnLoop(Net):
    """A recurrence in the user's own code."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = OwnStep()

    def forward(self, x: Tensor) -> Tensor:
        h, outs = x.new_zeros(len(x), HIDDEN), []
        for now in x.unbind(1):
            h = self.rnn(now, h)
            outs.append(h)
        return self.head(torch.stack(outs, 1))


def weight_norm() -> Net:
    net = Net()
    parametrizations.weight_norm(net.rnn, "weight_hh_l0")
    return net


def orthogonal() -> Net:
    net = Net("RNN")
    parametrizations.orthogonal(net.rnn, "weight_hh_l0")
    return net


def tied() -> Net:
    net = Net("RNN", num_layers=2)
    net.rnn.weight_hh_l1 = net.rnn.weight_hh_l0
    return net


def frozen() -> Net:
    net = Net(num_layers=2)
    for name, parameter in net.rnn.named_parameters():
        parameter.requires_grad_(not name.endswith("l0"))
    return net


def all_frozen() -> Net:
    net = Net()
    net.rnn.requires_grad_(False)
    return net


class Ema(Callback):
    """Keeps an average of the model in a deep copy, and runs the copy with gradients on."""

    def __init__(self) -> None:
        self.copy: nn.Module | None = None

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        if self.copy is None:
            self.copy = copy.deepcopy(module.rnn)

    def on_before_zero_grad(self, trainer: Any, module: Any, optimizer: Any) -> None:
        snapshot = copy.deepcopy(module.rnn)  # in the middle of a step, with hooks on
        snapshot(torch.zeros(1, 2, INPUTS))
        assert self.copy is not None
        with torch.no_grad():
            for mean, now in zip(self.copy.parameters(), snapshot.parameters(), strict=True):
                mean.lerp_(now, 0.1)


CASES: dict[str, tuple[Callable[[], L.LightningModule], dict[str, Any]]] = {
    "lstm": (Net, {}),
    "gru": (lambda: Net("GRU", num_layers=2), {}),
    "rnn": (lambda: Net("RNN", nonlinearity="relu"), {}),
    "bidirectional": (lambda: Net(bidirectional=True), {}),
    "projection": (lambda: Net(num_layers=2), {}),
    "dropout between layers": (lambda: Net(num_layers=2, dropout=0.5), {}),
    "cells in a loop": (Looped, {}),
    "own steps in a loop": (OwnLoop, {}),
    "two optimizers": (TwoOptimizers, {}),
    "raw manual loop": (RawLoop, {"steps": -1, "max_epochs": 1}),
    "accumulate": (Net, {"accumulate_grad_batches": 2}),
    "clip norm": (Net, {"gradient_clip_val": 0.1}),
    "clip value": (Net, {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"}),
    "float64": (Net, {"precision": "64-true"}),
    "bf16-mixed": (Net, {"precision": "bf16-mixed"}),
    "chunks by hand": (Chunked, {}),
    "state carried over batches": (Carried, {}),
    "checkpointing": (Checkpointed, {}),
    "checkpointing, reentrant": (CheckpointedReentrant, {}),
    "compiled": (Compiled, {}),
    "weight norm": (weight_norm, {}),
    "orthogonal": (orthogonal, {}),
    "tied": (tied, {}),
    "frozen": (frozen, {}),
    "all frozen": (all_frozen, {}),
    "copies of the model": (Net, {"others": [Ema()]}),
    "weight averaging": (
        Net,
        {
            "others": [StochasticWeightAveraging(1e-2, swa_epoch_start=1)],
            "max_epochs": 4,
            "steps": -1,
            "limit_train_batches": 2,
        },
    ),
    "validation between steps": (fits.Validated, {"val": True, "val_check_interval": 2}),
}


def _train(case: str, callbacks: list[Any]) -> tuple[L.LightningModule, Tensor]:
    make, options = CASES[case]
    skip_without_bf16_lstm(case == "bf16-mixed")
    options = dict(options)
    callbacks = [*callbacks, *copy.deepcopy(options.pop("others", []))]
    dtype = torch.float64 if options.get("precision") == "64-true" else torch.float32
    if options.pop("val", False):
        module = _with_validation(make, callbacks, options)
    else:
        module = fit(make, callbacks, data=fits.loader(dtype=dtype), **options)
    return module, torch.get_rng_state()


def _with_validation(make: Any, callbacks: list[Any], options: dict[str, Any]) -> Any:
    L.seed_everything(7, verbose=False)
    module = make()
    quiet = {**fits.QUIET, "max_steps": fits.STEPS, "num_sanity_val_steps": 2, **options}
    trainer = L.Trainer(**quiet, callbacks=callbacks)
    trainer.fit(module, fits.loader(), fits.loader(2, shuffle=False))
    trainer.predict(module, fits.loader(2, shuffle=False))
    return module


# torch's compiler looks at .grad of the layer's output, with or without a callback
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.filterwarnings("ignore:`torch.cpu.amp.autocast:FutureWarning")  # torch 2.4's own
@pytest.mark.filterwarnings("ignore:Guards may run slower on Python 3.13.0")  # torch's own word
@pytest.mark.parametrize("case", CASES)
def test_weights_and_random_stream_are_the_same(case: str, diagnostics: Any) -> None:
    callback = diagnostics(steps=["rnn"] if case == "own steps in a loop" else [])
    ours, stream = _train(case, [callback])
    theirs, plain_stream = _train(case, [])
    assert_same(ours, theirs)
    assert torch.equal(stream, plain_stream)
    run = rnndiag.open_run(callback.run_dir)
    assert run.status.word == "finished"
    if case == "all frozen":  # no gradient flows through the layer: the run says just that
        assert run.layers_of("credit_profile") == ()
        assert rnndiag.diagnose(run).causes[0].name == "frozen_or_unused"
        return
    assert not run.problems
    recordings = [recording for recording in run.recordings if recording.phase == "train"]
    assert len(recordings) >= 2
    # of a layer whose weights and inputs receive no gradient nothing can be held against autograd's
    expected = "unverified" if case == "frozen" else "exact"
    assert {recording.verdict for recording in recordings} == {expected}, recordings[0].reasons
    assert not any("errors" in recording.notes for recording in recordings)
