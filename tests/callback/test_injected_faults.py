"""A fault in any function of the recorder that a training reaches: weights stay, one message, training ends."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rnndiag
from rnndiag.recorder import faults
from rnndiag.recorder.capture.kernel_calls import KernelCalls
from rnndiag.recorder.faults import RnndiagWarning

ROOT = Path(faults.__file__).parent
GUARDS = {
    # What torch and the loop call. A guard cannot guard itself: its body is the guard.
    "Recorder.__enter__",
    "Recorder.__exit__",
    "Recorder.step",
    "Recorder.close",
    "Recorder._guarded",
    "Recorder._refuse_if_closed",
    "Recorder._before_step",
    "Recorder._after_step",
    "Recorder._note_loss",
    "RecordedStep.__init__",
    "RecordedStep.__enter__",
    "RecordedStep.__exit__",
    "RecordedStep.backward",
    "Capture.guarded.<locals>.guarded",
    "Capture._on_kernel",
    "Capture._before_backward",
    "Capture._spoil",
    "CallMemory._entering.<locals>.enter",
    "KernelMode.__torch_function__",
    "ModuleHook.__call__",
    "LightHook.__call__",
    "RandomHook.__call__",
    "Arrival.__call__",
    "Faults.add",
    "_watched",
    "run_backward",
    "own_passes",
    "measuring",
}
SAMPLE = 10
"""Functions of each net that are tried by default; `-m slow` tries all."""


class Planted(Exception):
    """The fault."""


class Net(nn.Module):
    """An LSTM of two layers with dropout between them, or a cell in a loop."""

    def __init__(self, loop: bool) -> None:
        super().__init__()
        self.loop = loop
        self.rnn = nn.LSTMCell(3, 5) if loop else nn.LSTM(3, 5, 2, batch_first=True, dropout=0.3)
        self.head = nn.Linear(5, 1)

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        if not self.loop:
            out, state = self.rnn(x, state)
            return self.head(out), state
        outs = []
        for now in x.unbind(1):
            state = self.rnn(now, state)
            outs.append(state[0])
        return self.head(torch.stack(outs, 1)), state


def train(kind: str, recorder_of: Callable[[nn.Module, Any], Any] | None, spy: Any = None) -> Any:
    """Four batches; "chunks" cuts each in two and carries the state over. spy: a profile function for the loop."""
    torch.manual_seed(3)
    model = Net(kind == "cell")
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    batches = [torch.randn(3, 8, 3) for _ in range(4)]
    recorder = None if recorder_of is None else recorder_of(model, optimizer)

    def loop() -> None:
        state = None
        for x in batches:
            for part in x.split(4, 1) if kind == "chunks" else [x]:
                step = None if recorder is None else recorder.step().__enter__()
                out, new = model(part, state if kind == "chunks" else None)
                state = tuple(value.detach() for value in new)
                loss = out.square().mean()
                if step is None:
                    loss.backward()
                else:
                    step.backward(loss)
                    step.__exit__(None, None, None)
                optimizer.step()
                optimizer.zero_grad()

    sys.setprofile(spy)
    try:
        if recorder is None:
            loop()
        else:
            with recorder:
                loop()
    finally:
        sys.setprofile(None)
    return model, torch.get_rng_state()


def recorder_in(folder: Path) -> Callable[[nn.Module, Any], Any]:
    def make(model: nn.Module, optimizer: Any) -> Any:
        return rnndiag.Recorder(
            model,
            folder,
            optimizer,
            schedule=lambda step: step % 2 == 0,
            measures=["contributions", "lags", "gates"],
            screen=False,
            report=False,
        )

    return make


def reached(kind: str, folder: Path) -> dict[CodeType, int]:
    """Functions of the recorder that the training calls -> how often."""
    found: dict[CodeType, int] = {}

    def spy(frame: FrameType, event: str, _: object) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(str(ROOT)):
            found[code] = found.get(code, 0) + 1

    train(kind, recorder_in(folder), spy)
    # A generator expression is called once more when it is dropped, where Python ignores what is raised.
    mine = {
        code: count
        for code, count in found.items()
        if name_of(code) not in GUARDS and code.co_name != "<genexpr>"
    }
    assert len(mine) > 200
    return mine


def name_of(code: CodeType) -> str:
    """Its qualified name, which Python 3.10 does not know."""
    return getattr(code, "co_qualname", code.co_name)


def wrong_after_faults(kind: str, folder: Path, every: int | None) -> str:
    """What a fault in each of the functions does that it must not, a line each; `every`: of about so many of them."""
    codes = reached(kind, folder / "first")
    chosen = sorted(codes, key=lambda code: (code.co_filename, code.co_firstlineno))
    if every is not None:
        chosen = chosen[:: max(1, len(chosen) // every)]
    plain, stream = train(kind, None)
    wrong = []
    for number, code in enumerate(chosen):
        left = [min(2, codes[code])]

        def spy(
            frame: FrameType, event: str, _: object, left: Any = left, code: Any = code
        ) -> None:
            if event == "call" and frame.f_code is code:
                left[0] -= 1
                if left[0] == 0:
                    sys.setprofile(None)
                    raise Planted("planted")

        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            try:
                model, after = train(kind, recorder_in(folder / str(number)), spy)
            except Planted:
                wrong.append(f"{name_of(code)} ends the training")
                continue
        same = all(map(torch.equal, model.parameters(), plain.parameters()))
        if not same or not torch.equal(stream, after):
            wrong.append(f"{name_of(code)} changes the training")
        messages = [str(one.message) for one in told if issubclass(one.category, RnndiagWarning)]
        if left[0] == 0 and len(messages) != 1:
            wrong.append(f"{name_of(code)} is told {len(messages)} times: {messages}")
        if any(module._forward_hooks or module._forward_pre_hooks for module in model.modules()):
            wrong.append(f"{name_of(code)} leaves hooks behind")
    return "\n".join(wrong)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="code objects have no qualified name")
@pytest.mark.parametrize("kind", ["layer", "cell", "chunks"])
def test_a_fault_in_a_function_of_the_recorder_leaves_training_alone(
    kind: str, tmp_path: Path
) -> None:
    assert wrong_after_faults(kind, tmp_path, SAMPLE) == ""


@pytest.mark.long
@pytest.mark.skipif(sys.version_info < (3, 11), reason="code objects have no qualified name")
@pytest.mark.parametrize("kind", ["layer", "cell", "chunks"])
def test_a_fault_in_every_function_of_the_recorder_leaves_training_alone(
    kind: str, tmp_path: Path
) -> None:
    assert wrong_after_faults(kind, tmp_path, None) == ""


@pytest.mark.parametrize("part", ["before", "after"])
@pytest.mark.parametrize("kind", ["layer", "cell", "chunks"])
def test_a_fault_around_a_kernels_call_leaves_training_alone(
    kind: str, part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise Planted("planted")

    monkeypatch.setattr(KernelCalls, part, broken)
    plain, stream = train(kind, None)
    with pytest.warns(RnndiagWarning, match="planted") as told:
        model, after = train(kind, recorder_in(tmp_path / "run"))
    assert len(told) == 1
    assert all(map(torch.equal, model.parameters(), plain.parameters()))
    assert torch.equal(stream, after)
    assert torch._C._len_torch_function_stack() == 0
