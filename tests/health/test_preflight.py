"""Preflight: planted structural faults are named, each with its layer, and healthy models pass."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from rnndiag.errors import BadArgument
from rnndiag.health.finding import Finding
from rnndiag.recorder.preflight import glance, preflight
from rnndiag.recorder.probe import probe

N, T, F, H = 5, 8, 3, 6


class Net(nn.Module):
    """A recurrent layer with a head; `walk` says how the input goes through it."""

    def __init__(
        self,
        walk: Callable[[Net, Any], Tensor],
        rnn: nn.Module | None = None,
        width: int = H,
        **parts: nn.Module,
    ):
        super().__init__()
        self.rnn = rnn or nn.LSTM(F, H, batch_first=True)
        for name, part in parts.items():
            self.add_module(name, part)
        self.head = nn.Linear(width, 1)
        self.walk = walk

    def forward(self, batch: Any) -> Tensor:
        return self.walk(self, batch)


def loss_of(model: nn.Module, batch: Any) -> Tensor:
    """Mean square of the outputs against the batch's targets."""
    out = model(batch)
    target = batch[1] if isinstance(batch, tuple) else batch["y"]
    return mse_loss(out.reshape(target.shape), target)


def last_step(net: Net, batch: Any) -> Tensor:
    return net.head(net.rnn(batch[0])[0][:, -1])


def every_step(net: Net, batch: Any) -> Tensor:
    return net.head(net.rnn(batch[0])[0])


def data(*target: int) -> tuple[Tensor, Tensor]:
    return torch.randn(N, T, F), torch.randn(*target)


def faults(found: list[Finding]) -> dict[str, str]:
    """Check -> layer of what is not well."""
    return {
        one.check.removeprefix("preflight: "): one.layer
        for one in found
        if one.status in ("fail", "warn")
    }


# --- planted faults ---------------------------------------------------------------------------------------------------


def viewed(net: Net, batch: Any) -> Tensor:
    out, _ = net.rnn(batch[0].reshape(T, N, F))
    return net.head(out.reshape(N, T, H))


def pooled(net: Net, batch: Any) -> Tensor:
    return net.head(net.rnn(batch[0])[0]).mean((1, 2))


def masked_not(net: Net, batch: Any) -> Tensor:
    return net.head(net.rnn(batch[0])[0][:, -1])


def normalised(net: Net, batch: Any) -> Tensor:
    return net.head(net.rnn(net.norm(batch[0].transpose(1, 2)).transpose(1, 2))[0])


def stepped(carry: Callable[[Tensor], Tensor], pass_on: bool) -> Callable[[Net, Any], Tensor]:
    def walk(net: Net, batch: Any) -> Tensor:
        state = torch.zeros(len(batch[0]), H)
        outs = []
        for t in range(batch[0].shape[1]):
            new = net.rnn(batch[0][:, t], carry(state))
            state = new if pass_on else state
            outs.append(net.head(new))
        return torch.stack(outs, 1)

    return walk


def padded() -> tuple[Tensor, Tensor, Tensor]:
    lengths = torch.tensor([8, 5, 3, 6, 2])
    x = torch.randn(N, T, F)
    x[torch.arange(T)[None, :] >= lengths[:, None]] = 0.0
    return x, torch.randn(N, 1), lengths


def planted() -> dict[str, tuple[Callable[[], tuple[Net, Any]], str, str]]:
    """Name -> (model and batch, the check that finds it, the layer that it names)."""
    return {
        "view for transpose": (
            lambda: (Net(viewed, nn.LSTM(F, H)), data(N, T, 1)),
            "reshaped, not transposed",
            "rnn.l0",
        ),
        "batch_first forgotten": (
            lambda: (Net(every_step, nn.LSTM(F, H)), data(N, T, 1)),
            "time and batch swapped",
            "rnn.l0",
        ),
        "batch_first forgotten, told": (
            lambda: (Net(pooled, nn.LSTM(F, H)), (torch.randn(N, T, F), torch.randn(N))),
            "time and batch swapped",
            "rnn.l0",
        ),
        "mask missing": (lambda: (Net(masked_not), padded()), "padding counts", "rnn.l0"),
        "BatchNorm across the batch": (
            lambda: (Net(normalised, norm=nn.BatchNorm1d(F)), data(N, T, 1)),
            "samples mixed",
            "rnn.l0",
        ),
        "BatchNorm without running statistics": (
            lambda: (
                Net(normalised, norm=nn.BatchNorm1d(F, track_running_stats=False)),
                data(N, T, 1),
            ),
            "samples mixed",
            "rnn.l0",
        ),
        "stray detach": (
            lambda: (Net(stepped(Tensor.detach, True), nn.GRUCell(F, H)), data(N, T, 1)),
            "stray detach",
            "rnn",
        ),
        "state never passed on": (
            lambda: (Net(stepped(lambda s: s, False), nn.GRUCell(F, H)), data(N, T, 1)),
            "state not carried",
            "rnn",
        ),
    }


@pytest.mark.parametrize("name", planted())
def test_a_planted_fault_is_named_with_its_layer(name: str) -> None:
    torch.manual_seed(0)
    make, check, layer = planted()[name]
    model, batch = make()
    found = preflight(model, batch, loss_of)
    assert faults(found).get(check) == layer, found
    fault = next(one for one in found if one.check.endswith(check))
    assert fault.remedy
    assert layer in fault.message


def test_the_module_that_mixes_is_named_and_a_swap_that_is_certain_fails() -> None:
    make, *_ = planted()["BatchNorm across the batch"]
    fault = next(one for one in preflight(*make(), loss_of) if one.status == "warn")
    assert "norm (BatchNorm1d)" in fault.message
    assert "in training mode" in fault.message
    make, *_ = planted()["batch_first forgotten, told"]
    assert next(one for one in preflight(*make(), loss_of) if one.layer).status == "fail"
    make, *_ = planted()["batch_first forgotten"]
    assert next(one for one in preflight(*make(), loss_of) if one.layer).status == "warn"


def test_a_layer_that_the_loss_cannot_reach_is_named() -> None:
    def cut(net: Net, batch: Any) -> Tensor:
        return net.head(net.upper(net.rnn(batch[0])[0].detach())[0])

    model = Net(cut, upper=nn.GRU(H, H, batch_first=True))
    assert faults(preflight(model, data(N, T, 1), loss_of)) == {"no gradient": "rnn"}


def test_a_convolution_that_looks_ahead_is_told_and_a_causal_one_is_not() -> None:
    def convolved(net: Net, batch: Any) -> Tensor:
        x = net.conv(batch[0].transpose(1, 2))[:, :, :T]
        return net.head(net.rnn(x.transpose(1, 2))[0])

    ahead = Net(convolved, conv=nn.Conv1d(F, F, 3, padding=1))
    assert faults(preflight(ahead, data(N, T, 1), loss_of)) == {"looks ahead": "rnn.l0"}
    causal = Net(convolved, conv=nn.Conv1d(F, F, 3, padding=2))
    assert faults(preflight(causal, data(N, T, 1), loss_of)) == {}


def chunked(net: Net, batch: Any) -> Tensor:
    state, outs = None, []
    for piece in batch[0].split(4, 1):
        out, state = net.rnn(piece, state)
        state = tuple(part.detach() for part in state)
        outs.append(net.head(out))
    return torch.cat(outs, 1)


def test_a_truncation_that_is_declared_is_no_fault() -> None:
    model, batch = Net(chunked), data(N, T, 1)
    assert faults(preflight(model, batch, loss_of)) == {"stray detach": "rnn.l0"}
    assert faults(preflight(model, batch, loss_of, detach=4)) == {}
    assert faults(preflight(model, batch, loss_of, detach="any")) == {}
    assert faults(preflight(model, batch, loss_of, detach=8)) == {"stray detach": "rnn.l0"}


# --- healthy models ---------------------------------------------------------------------------------------------------


def packed(net: Net, batch: Any) -> Tensor:
    out, _ = net.rnn(
        pack_padded_sequence(batch[0], batch[2], batch_first=True, enforce_sorted=False)
    )
    out, lengths = pad_packed_sequence(out, batch_first=True, total_length=T)
    return net.head(out[torch.arange(N), lengths - 1])


def last_real(net: Net, batch: Any) -> Tensor:
    return net.head(net.rnn(batch[0])[0][torch.arange(N), batch[2] - 1])


def time_first(net: Net, batch: Any) -> Tensor:
    return net.head(net.rnn(batch[0])[0][-1])


def tokens(net: Net, batch: Any) -> Tensor:
    return net.head(net.rnn(net.embed(batch["x"]))[0])


def siamese(net: Net, batch: Any) -> Tensor:
    one, other = (net.rnn(x)[0][:, -1] for x in (batch[0], batch[0].flip(1)))
    return net.head(one * other)


def encoder_decoder(net: Net, batch: Any) -> Tensor:
    _, state = net.rnn(batch[0])
    return net.head(net.decoder(batch[0], state)[0])


HEALTHY: dict[str, Callable[[], tuple[nn.Module, Any]]] = {
    "LSTM, last step": lambda: (Net(last_step), data(N, 1)),
    "two GRU layers with dropout": lambda: (
        Net(every_step, nn.GRU(F, H, 2, batch_first=True, dropout=0.5)),
        data(N, T, 1),
    ),
    "bidirectional stack": lambda: (
        Net(every_step, nn.LSTM(F, H, 2, batch_first=True, bidirectional=True), 2 * H),
        data(N, T, 1),
    ),
    "time first": lambda: (Net(time_first, nn.RNN(F, H)), (torch.randn(T, N, F), torch.randn(N))),
    "packed": lambda: (Net(packed), padded()),
    "last real step picked": lambda: (Net(last_real), padded()),
    "tokens": lambda: (
        Net(tokens, nn.GRU(F, H, batch_first=True), embed=nn.Embedding(11, F)),
        {"x": torch.randint(11, (N, T)), "y": torch.randn(N, T, 1)},
    ),
    "cell loop": lambda: (Net(stepped(lambda s: s, True), nn.GRUCell(F, H)), data(N, T, 1)),
    "siamese": lambda: (Net(siamese), data(N, 1)),
    "encoder and decoder": lambda: (
        Net(encoder_decoder, decoder=nn.LSTM(F, H, batch_first=True)),
        data(N, T, 1),
    ),
    "LayerNorm": lambda: (
        Net(last_step, nn.LSTM(F, H, batch_first=True), norm=nn.LayerNorm(F)),
        data(N, 1),
    ),
    "square batch": lambda: (Net(every_step), (torch.randn(T, T, F), torch.randn(T, T, 1))),
}


@pytest.mark.parametrize("name", HEALTHY)
def test_a_healthy_model_passes(name: str) -> None:
    torch.manual_seed(0)
    model, batch = HEALTHY[name]()
    found = preflight(model, batch, loss_of)
    assert faults(found) == {}
    assert any(one.status == "pass" for one in found)


def test_targets_marked_as_ignored_are_no_padding_fault() -> None:
    def scored(net: Net, batch: Any) -> Tensor:
        return net.head(net.rnn(net.embed(batch["x"]))[0])

    def loss(model: nn.Module, batch: Any) -> Tensor:
        scores = model(batch)
        return cross_entropy(
            torch.cat([scores, -scores], -1).reshape(-1, 2), batch["y"].reshape(-1)
        )

    x, y = torch.randint(1, 11, (N, T)), torch.randint(2, (N, T))
    past = torch.arange(T)[None, :] >= torch.tensor([8, 5, 3, 6, 2])[:, None]
    x[past], y[past] = 0, -100
    model = Net(scored, nn.GRU(F, H, batch_first=True), embed=nn.Embedding(11, F))
    found = preflight(model, {"x": x, "y": y}, loss)
    assert faults(found) == {}
    assert any(one.check.endswith("padding counts") and one.status == "pass" for one in found)
    reverse = Net(
        scored, nn.GRU(F, H, batch_first=True, bidirectional=True), 2 * H, embed=nn.Embedding(11, F)
    )
    assert faults(preflight(reverse, {"x": x, "y": y}, loss)) == {
        "padding counts": "rnn.l0.reverse"
    }


# --- manners ----------------------------------------------------------------------------------------------------------


def test_everything_is_left_as_it_was() -> None:
    class Stateful(Net):
        kept: Tensor | None = None
        calls = 0

        def forward(self, batch: Any) -> Tensor:
            self.calls += 1
            self.kept = self.norm(batch[0].transpose(1, 2))
            return super().forward(batch)

    model = Stateful(last_step, norm=nn.BatchNorm1d(F)).train()
    batch = data(N, 1)
    loss_of(model, batch).backward()
    kept, state, calls = model.kept, copy.deepcopy(model.state_dict()), model.calls
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    before, originals = torch.get_rng_state(), [part.clone() for part in batch]
    preflight(model, batch, loss_of)
    assert torch.equal(torch.get_rng_state(), before)
    assert model.training
    assert (model.kept is kept, model.calls) == (True, calls)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) == (name not in gradients)
        assert parameter.grad is None or torch.equal(parameter.grad, gradients[name])
    assert all(torch.equal(one, other) for one, other in zip(batch, originals, strict=True))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_mistakes_in_the_call_are_told_in_a_sentence() -> None:
    model, batch = Net(last_step), data(N, 1)
    with pytest.raises(BadArgument, match="no training_step"):
        preflight(model, batch)
    with pytest.raises(BadArgument, match="not a loss"):
        preflight(model, batch, lambda m, b: m(b))
    with pytest.raises(BadArgument, match="no gradient"):
        preflight(model, batch, lambda m, b: loss_of(m, b).detach())
    with pytest.raises(BadArgument, match="batch_dim is 3"):
        preflight(model, batch, loss_of, batch_dim=3)
    with pytest.raises(BadArgument, match="2 lengths were given for 5 samples"):
        preflight(model, batch, loss_of, lengths=[1, 2])
    with pytest.raises(BadArgument, match="holds no tensor"):
        preflight(model, [torch.zeros(3)], loss_of)


def test_a_model_without_recurrent_layers_is_not_judged() -> None:
    model = nn.Linear(F, 1)
    found = preflight(model, torch.randn(N, T, F), lambda m, b: m(b).sum())
    assert [one.status for one in found] == ["not_judged"]


# --- a glance at one recorded step ------------------------------------------------------------------------------------


def glanced(model: nn.Module, batch: Any) -> dict[str, str]:
    with probe(model) as seen:
        loss_of(model, batch).backward()
    found = [Finding.from_json(one) for one in glance(seen.layer_runs, batch)]
    return faults(found)


@pytest.mark.parametrize(
    "name", ["state never passed on", "batch_first forgotten, told", "mask missing"]
)
def test_a_glance_at_a_step_sees_faults_that_need_no_other_batch(name: str) -> None:
    torch.manual_seed(0)
    make, check, layer = planted()[name]
    assert glanced(*make()) == {check: layer}


@pytest.mark.parametrize("name", HEALTHY)
def test_a_glance_at_a_healthy_step_sees_nothing(name: str) -> None:
    torch.manual_seed(0)
    assert glanced(*HEALTHY[name]()) == {}
