"""Watches a model's recurrent modules: armed, it keeps what forward and backward passes leave; `take` replays them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils.hooks import RemovableHandle

from rnndiag.engine.cells import Cell
from rnndiag.recorder.capture.backward_pass import Tasks
from rnndiag.recorder.capture.hook import ModuleHook
from rnndiag.recorder.capture.kernel_calls import CallLog, Frame
from rnndiag.recorder.capture.kernel_mode import KernelMode
from rnndiag.recorder.capture.kernels import KernelCall, read_call
from rnndiag.recorder.capture.passes import BackwardPass, Names, backward_passes
from rnndiag.recorder.capture.weights import Weights
from rnndiag.recorder.faults import Faults


def _unscaled() -> float:
    return 1.0


class Capture:
    """Hooks on the recurrent modules of one model. Nothing is hooked until `arm` or left after `disarm`."""

    def __init__(
        self,
        model: nn.Module,
        *,
        loss_scale: Callable[[], float] = _unscaled,
        faults: Faults | None = None,
    ) -> None:
        self.model = model
        self.faults = Faults(strict=True) if faults is None else faults
        self._tasks = Tasks(loss_scale)
        self._weights = Weights(self._tasks)
        self._log = CallLog(self._tasks, self._weights, self.faults)
        self._names = Names()
        self._frames: list[Frame] = []
        self._mode: KernelMode | None = None
        self._handles: list[RemovableHandle] = []
        self._modules = recurrent_modules(model)

    @property
    def armed(self) -> bool:
        """Whether the hooks are on."""
        return bool(self._handles)

    def arm(self) -> None:
        """Put the hooks on. What was kept before is forgotten."""
        self.disarm()
        self.forget()
        for name, module in self._modules.items():
            enter, leave = ModuleHook(module, self._enter(name)), ModuleHook(module, self._leave)
            self._handles += [
                module.register_forward_pre_hook(enter, with_kwargs=True),
                module.register_forward_hook(leave, always_call=True),
            ]
            for key, parameter in module.named_parameters():
                # before the forward: the gradient of a call that nobody saw does not go unnoticed
                self._weights.watch(parameter, f"{name}.{key}" if name else key)

    def disarm(self) -> None:
        """Take all hooks off; what was kept stays until `take` or `forget`."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._weights.unhook()
        self._close_mode()
        self._frames.clear()

    def take(self) -> tuple[BackwardPass, ...]:
        """The backward passes since `arm`, with their layer runs; they are forgotten here."""
        found = backward_passes(self._tasks, self._log.calls, self._weights, self._names)
        self.forget()
        return found

    def forget(self) -> None:
        """Drop what was kept, keep watching."""
        self._log.clear()
        self._tasks.clear()
        self._weights.forget()
        self._names = Names()

    def _enter(self, name: str) -> Callable[[nn.Module, tuple[Any, ...], Mapping[str, Any]], None]:
        def enter(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
            frame = Frame(name, module, torch.is_grad_enabled())
            self._frames.append(frame)
            if not frame.grad:
                return
            with self.faults.guard("watching a forward pass"):
                _note_order(frame, args, kwargs)
            if self._mode is None:
                self._mode = KernelMode(self._on_kernel).open()

        return enter

    def _leave(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if not self._frames or self._frames[-1].module is not module:
            return
        frame = self._frames.pop()
        if frame.last is not None and frame.last.plan.unsorted is not None:
            with self.faults.guard("watching a forward pass"):
                self._note_final(frame, output)
        if not any(frame.grad for frame in self._frames):
            self._close_mode()

    def _close_mode(self) -> None:
        mode, self._mode = self._mode, None
        if mode is not None:
            mode.close()

    def _on_kernel(
        self,
        cell: Cell,
        one_step: bool,
        kernel: Any,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> Any:
        frame = self._frames[-1] if self._frames else None
        if frame is None or not torch.is_grad_enabled():
            return kernel(*args, **kwargs)
        found: list[KernelCall] = []
        with self.faults.guard("reading a kernel call"):
            found.append(read_call(cell, one_step, kernel, args, kwargs))
        if not found:
            return kernel(*args, **kwargs)
        outputs = self._log.run(frame, found[0])
        return outputs if len(outputs) > 1 else outputs[0]

    def _note_final(self, frame: Frame, output: Any) -> None:
        """The final state as an unsorted packed call returned it: in the user's order, elsewhere in memory."""
        assert frame.last is not None
        if not isinstance(output, tuple) or len(output) != 2:
            return
        final = output[1] if isinstance(output[1], tuple) else (output[1],)
        for slot, part in enumerate(final, 1):
            self._log.ends.add_alias(frame.last, slot, part)


def recurrent_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Qualified name -> module, of all modules that call a recurrent kernel of torch."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, (nn.RNNBase, nn.RNNCellBase))
    }


def _note_order(frame: Frame, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Of an unsorted packed batch: its order, and the initial state before it is sorted."""
    given = args[0] if args else kwargs.get("input")
    if not isinstance(given, PackedSequence) or given.unsorted_indices is None:
        return
    frame.unsorted = given.unsorted_indices
    hx = args[1] if len(args) > 1 else kwargs.get("hx")
    if isinstance(hx, Tensor):
        frame.hx = (hx,)
    elif isinstance(hx, tuple):
        frame.hx = hx
