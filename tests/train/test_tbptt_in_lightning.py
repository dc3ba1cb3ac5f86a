"""Truncated BPTT by the mixin: bit for bit the loop written by hand, for 20 optimizer steps and more."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from rnndiag import train
from rnndiag.errors import BadArgument

SEQUENCES, B, T, I, H, K = 12, 4, 24, 3, 6, 4
QUIET: dict[str, Any] = {
    "max_epochs": 2,
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_model_summary": False,
    "enable_progress_bar": False,
    "num_sanity_val_steps": 0,
}
SGD = lambda parameters: torch.optim.SGD(parameters, 0.1, momentum=0.9)  # noqa: E731
ADAM = lambda parameters: torch.optim.Adam(parameters, 0.01)  # noqa: E731


class Body(nn.Module):
    """A recurrent net with dropout in the step of its loss."""

    def __init__(self, dropout: float = 0.3, kind: Any = nn.LSTM) -> None:
        super().__init__()
        self.rnn, self.drop = kind(I, H, batch_first=True), nn.Dropout(dropout)
        self.head = nn.Linear(H, 1)

    def loss(self, chunk: Any, state: Any) -> tuple[Tensor, Any]:
        x, y = chunk
        out, state = self.rnn(x, state)
        return nn.functional.mse_loss(self.head(self.drop(out)), y), state


def module_class(package: str = "lightning.pytorch") -> type:
    L = importlib.import_module(package)

    class Net(train.TruncatedBPTT, L.LightningModule):  # type: ignore[misc]
        def __init__(
            self, optimizer: Any = SGD, dropout: float = 0.3, kind: Any = nn.LSTM, **options: Any
        ) -> None:
            super().__init__(**options)
            self.body, self.make = Body(dropout, kind), optimizer
            self.losses: list[float] = []

        def tbptt_step(self, chunk: Any, state: Any) -> Any:
            loss, state = self.body.loss(chunk, state)
            self.log("loss", loss)
            self.losses.append(float(loss.detach()))
            return loss, state

        def configure_optimizers(self) -> Any:
            return self.make(self.parameters())

    return Net


def data() -> TensorDataset:
    x = torch.randn(SEQUENCES, T, I, generator=torch.Generator().manual_seed(7))
    return TensorDataset(x, x.cumsum(1).sum(-1, keepdim=True).sin())


def loader() -> DataLoader[Any]:
    return DataLoader(data(), batch_size=B)


def fitted(
    package: str = "lightning.pytorch", trainer: dict[str, Any] | None = None, **options: Any
) -> Any:
    L = importlib.import_module(package)
    torch.manual_seed(0)
    net = module_class(package)(**options)
    torch.manual_seed(1)
    L.Trainer(**{**QUIET, **(trainer or {})}).fit(net, loader())
    return net


def autocast(enabled: bool) -> Any:
    """As Lightning's precision plugin does it: weights are cast anew for every use."""
    return torch.autocast("cpu", torch.bfloat16, enabled=enabled, cache_enabled=False)


def by_hand(
    optimizer: Callable[[Any], Any] = SGD,
    *,
    k: int = K,
    clip: float | None = None,
    accumulate: int = 1,
    bf16: bool = False,
    stateful: bool = False,
    per_batch: bool = False,
    dropout: float = 0.3,
    kind: Any = nn.LSTM,
) -> Body:
    torch.manual_seed(0)
    body = Body(dropout, kind)
    made = optimizer(body.parameters())
    torch.manual_seed(1)
    for _ in range(2):
        state, count = None, 0
        batches = list(loader())
        for number, (x, y) in enumerate(batches):
            if not stateful:
                state = None
            starts = range(0, T, k)
            for start in starts:
                with autocast(bf16):
                    chunk = x[:, start : start + k], y[:, start : start + k]
                    loss, state = body.loss(chunk, state)
                state = cut(state)
                if count == 0:
                    made.zero_grad()
                share = accumulate * (len(starts) if per_batch else 1)
                (loss / share if share > 1 else loss).backward()
                count += 1
                last = number + 1 == len(batches) and start + k >= T
                if count == share or last:
                    count = 0
                    if clip is not None:
                        nn.utils.clip_grad_norm_(body.parameters(), clip)
                    made.step()
    return body


def cut(state: Any) -> Any:
    return state.detach() if isinstance(state, Tensor) else tuple(part.detach() for part in state)


def equal(net: Any, body: Body) -> bool:
    pairs = zip(net.body.parameters(), body.parameters(), strict=True)
    return all(torch.equal(one, two) for one, two in pairs)


CASES: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "sgd": ({}, {}, {}),
    "adam": ({"optimizer": ADAM}, {}, {"optimizer": ADAM}),
    "clipping": ({}, {"gradient_clip_val": 0.05}, {"clip": 0.05}),
    "accumulation": ({}, {"accumulate_grad_batches": 4}, {"accumulate": 4}),
    "bf16": (  # a GRU, since oneDNN has no bfloat16 LSTM on every CPU
        {"optimizer": ADAM, "kind": nn.GRU},
        {"precision": "bf16-mixed"},
        {"optimizer": ADAM, "kind": nn.GRU, "bf16": True},
    ),
    "stateful": ({"stateful": True}, {}, {"stateful": True}),
    "an update a batch": ({"update": "batch"}, {}, {"per_batch": True}),
    "batches accumulated": (
        {"update": "batch"},
        {"accumulate_grad_batches": 2},
        {"per_batch": True, "accumulate": 2},
    ),
    "chunks that do not fit": ({"k1": 7}, {}, {"k": 7}),
}


@pytest.mark.parametrize("package", ["lightning.pytorch", "pytorch_lightning"])
@pytest.mark.parametrize("case", CASES)
def test_chunks_equal_the_loop_by_hand_bit_for_bit(case: str, package: str) -> None:
    options, trainer, hand = CASES[case]
    net = fitted(package, trainer, **{"k1": K, **options})
    assert equal(net, by_hand(**hand))


@pytest.mark.parametrize("case", CASES)
def test_the_plain_function_is_the_same_loop(case: str) -> None:
    options, trainer, hand = CASES[case]
    torch.manual_seed(0)
    body = Body(kind=hand.get("kind", nn.LSTM))
    made = hand.get("optimizer", SGD)(body.parameters())

    def step(chunk: Any, state: Any) -> Any:
        with autocast(hand.get("bf16", False)):
            return body.loss(chunk, state)

    torch.manual_seed(1)
    accumulate = hand.get("accumulate", 1)
    for _ in range(2):
        updates = train.PlainUpdates(made, clip=trainer.get("gradient_clip_val"))
        loop = train.ChunkLoop(
            step,
            updates,
            options.get("k1", K),
            update=options.get("update", "chunk"),
            accumulate=accumulate,
        )
        state = None
        for number, batch in enumerate(loader()):
            before = state if hand.get("stateful") else None
            state = loop.run(batch, before, flush=number == SEQUENCES // B - 1).state
    expected = by_hand(**hand)
    pairs = zip(body.parameters(), expected.parameters(), strict=True)
    assert all(torch.equal(one, two) for one, two in pairs)


def test_global_step_counts_optimizer_steps_and_hooks_see_unclipped_gradients() -> None:
    import lightning.pytorch as L

    seen: list[tuple[int, float]] = []

    class Watch(L.Callback):
        def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Any) -> None:
            norm = torch.stack([p.grad.norm() for p in module.parameters()]).norm()
            seen.append((trainer.global_step, float(norm)))

    fitted(trainer={"gradient_clip_val": 0.01, "callbacks": [Watch()]}, k1=K)
    assert [step for step, _ in seen] == list(range(2 * 3 * T // K))
    assert min(norm for _, norm in seen) > 0.01


def test_an_author_who_overrides_hooks_need_not_call_super() -> None:
    import lightning.pytorch as L

    called: list[str] = []

    class Net(module_class()):  # type: ignore[misc]
        def setup(self, stage: str) -> None:
            called.append("setup")

        def on_before_optimizer_step(self, optimizer: Any) -> None:
            called.append("before")

        def on_train_epoch_start(self) -> None:
            super().on_train_epoch_start()

    torch.manual_seed(0)
    net = Net(k1=K)
    torch.manual_seed(1)
    trainer = L.Trainer(**QUIET, gradient_clip_val=0.05)
    trainer.fit(net, loader())
    assert called.count("setup") == 1
    assert called.count("before") == 36
    assert equal(net, by_hand(clip=0.05))
    trainer.fit_loop.max_epochs = 3
    trainer.fit(net, loader())  # Lightning accepts the clipping Trainer a second time
    assert called.count("setup") == 2


def test_schedulers_step_with_updates_epochs_and_metrics() -> None:
    import lightning.pytorch as L

    class Net(module_class()):  # type: ignore[misc]
        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.SGD(self.parameters(), 1.0)
            self.by_step = torch.optim.lr_scheduler.StepLR(optimizer, 5, 0.5)
            self.by_epoch = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: 1.0)
            self.plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=99)
            return [optimizer], [
                {"scheduler": self.by_step, "interval": "step", "frequency": 2},
                self.by_epoch,
                {"scheduler": self.plateau, "monitor": "loss"},
            ]

    net = Net(k1=K)
    L.Trainer(**QUIET).fit(net, loader())
    assert net.by_step.last_epoch == 2 * 3 * (T // K) // 2
    assert net.by_epoch.last_epoch == 2
    assert net.plateau.last_epoch == 2


def test_several_optimizers_step_together_or_each_by_its_own_loss() -> None:
    import lightning.pytorch as L

    class Net(module_class()):  # type: ignore[misc]
        def __init__(self, apart: bool) -> None:
            super().__init__(k1=K, dropout=0.0)
            self.apart = apart

        def tbptt_step(self, chunk: Any, state: Any) -> Any:
            loss, state = self.body.loss(chunk, state)
            return ((loss, 3 * loss) if self.apart else loss), state

        def configure_optimizers(self) -> Any:
            return SGD(self.body.rnn.parameters()), SGD(self.body.head.parameters())

    for apart in (False, True):
        torch.manual_seed(0)
        net = Net(apart)
        L.Trainer(**QUIET, gradient_clip_val=10.0).fit(net, loader())
        torch.manual_seed(0)
        body = Body(0.0)
        first, second = SGD(body.rnn.parameters()), SGD(body.head.parameters())
        for _ in range(2):
            for x, y in loader():
                state = None
                for start in range(0, T, K):
                    part = slice(start, start + K)
                    loss, state = body.loss((x[:, part], y[:, part]), state)
                    state = tuple(s.detach() for s in state)
                    body.zero_grad()
                    loss.backward()
                    if apart:
                        for p in body.head.parameters():
                            p.grad *= 3  # type: ignore[operator]
                    first.step()
                    second.step()
        for one, two in zip(net.body.parameters(), body.parameters(), strict=True):
            torch.testing.assert_close(one, two, rtol=0, atol=0 if not apart else 1e-6)


def test_a_loss_that_is_none_is_no_loss() -> None:
    with pytest.raises(BadArgument, match="returned a loss of type float"):
        train.truncated_bptt(lambda chunk, state: (0.5, state), torch.zeros(2, 4), k1=2)


def test_a_checkpoint_in_the_middle_of_a_sequence_goes_on_where_it_was(tmp_path: Path) -> None:
    import lightning.pytorch as L

    class Stop(Exception):
        pass

    class Saving(module_class()):  # type: ignore[misc]
        """Saves within the chunks of its second batch, and dies one chunk later."""

        at = 9

        def tbptt_step(self, chunk: Any, state: Any) -> Any:
            if len(self.losses) == self.at:
                self.trainer.save_checkpoint(tmp_path / "middle.ckpt")
            if len(self.losses) == self.at + 1 and self.at:
                raise Stop
            return super().tbptt_step(chunk, state)

    for options in ({"stateful": True}, {}, {"stateful": True, "window": 10}):
        straight = fitted(trainer={"max_epochs": 1}, k1=K, dropout=0.0, optimizer=ADAM, **options)
        torch.manual_seed(0)
        net = Saving(k1=K, dropout=0.0, optimizer=ADAM, **options)
        with pytest.raises(Stop):
            L.Trainer(**{**QUIET, "max_epochs": 1}).fit(net, loader())
        torch.manual_seed(5)
        again = Saving(k1=K, dropout=0.0, optimizer=ADAM, **options)
        again.at = 0
        trainer = L.Trainer(**{**QUIET, "max_epochs": 1})
        trainer.fit(again, Resumable(list(loader())), ckpt_path=tmp_path / "middle.ckpt")
        assert trainer.global_step == 3 * T // K
        assert all(
            torch.equal(one, two)
            for one, two in zip(again.parameters(), straight.parameters(), strict=True)
        ), options


class Resumable:
    """A loader that Lightning can restore: it goes on behind the batches that were finished."""

    def __init__(self, batches: list[Any]) -> None:
        self.batches, self.start = batches, 0

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Any:
        yield from self.batches[1:]  # the checkpoint was saved within the second batch

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to restore."""


def test_reset_rows_begin_anew_and_the_others_go_on() -> None:
    import lightning.pytorch as L

    states: list[Any] = []

    class Net(module_class()):  # type: ignore[misc]
        def tbptt_reset(self, batch: Any, batch_idx: int) -> Any:
            return torch.tensor([True, False, False, True]) if batch_idx == 1 else False

        def tbptt_step(self, chunk: Any, state: Any) -> Any:
            states.append(state)
            return super().tbptt_step(chunk, state)

    L.Trainer(**{**QUIET, "max_epochs": 1}).fit(Net(k1=T, stateful=True), loader())
    first, second, third = states
    assert first is None
    for part in second:
        assert [bool(part[:, b].any()) for b in range(B)] == [False, True, True, False]
    assert all(bool(part[:, b].any()) for part in third for b in range(B))
