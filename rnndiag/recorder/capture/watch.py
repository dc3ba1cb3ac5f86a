"""Watches a model's recurrent modules: armed, it keeps what forward and backward passes leave; `take` replays them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils.hooks import RemovableHandle

from rnndiag.engine.cells import Cell
from rnndiag.errors import CaptureFault, NotSupported
from rnndiag.recorder.capture.backward_pass import Tasks
from rnndiag.recorder.capture.call_log import CallLog
from rnndiag.recorder.capture.compiled import compiles_layers, pass_over, refuse_compiled, shielded
from rnndiag.recorder.capture.hook import ModuleHook
from rnndiag.recorder.capture.kernel_calls import KernelCalls, KernelFrame
from rnndiag.recorder.capture.kernel_mode import KernelMode
from rnndiag.recorder.capture.kernels import KernelCall, kernel_table, read_call
from rnndiag.recorder.capture.modules import Watched, recurrent_modules
from rnndiag.recorder.capture.passes import BackwardPass, Names, backward_passes
from rnndiag.recorder.capture.step_calls import StepModules
from rnndiag.recorder.capture.weights import Weights
from rnndiag.recorder.faults import Faults


def _unscaled() -> float:
    return 1.0


class Capture:
    """Hooks on the recurrent modules of one model. Nothing is hooked until `arm` or left after `disarm`.

    steps: names or classes of further modules that do one step of a recurrence. loss_scale: read during every backward
    pass; its value is divided out.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        steps: Iterable[str | type] = (),
        loss_scale: Callable[[], float] = _unscaled,
        faults: Faults | None = None,
    ) -> None:
        self.model = model
        self.faults = Faults(strict=True) if faults is None else faults
        self.modules = recurrent_modules(model, steps)
        self._tasks = Tasks(loss_scale)
        self._weights = Weights(self._tasks)
        self._log = CallLog(self._tasks, self._weights)
        self._kernels = KernelCalls(self._log, self.faults)
        self._steps = StepModules(self._log)
        self._names = Names()
        self.refused: dict[str, str] = {}
        """Module -> why it is not watched."""
        self._frames: list[KernelFrame] = []
        self._mode = KernelMode(self._on_kernel, kernel_table())
        self._handles: list[RemovableHandle] = []

    @property
    def armed(self) -> bool:
        """Whether the hooks are on."""
        return bool(self._handles)

    def arm(self) -> None:
        """Put the hooks on. What was kept before is forgotten."""
        self.disarm()
        self.forget()
        pass_over(ModuleHook.__call__, KernelMode.__torch_function__)
        self._mode = KernelMode(self._on_kernel, kernel_table())
        for name, watched in self.modules.items():
            module = watched.module
            enter = ModuleHook(module, shielded(self._entering(name, watched)))
            leave = ModuleHook(module, shielded(self._leave))
            self._handles += [
                module.register_forward_pre_hook(enter, with_kwargs=True),
                module.register_forward_hook(leave, always_call=True),
            ]
            for key, parameter in module.named_parameters():
                # before the forward: the gradient of a call that nobody saw does not go unnoticed
                path = f"{name}.{key}" if name else key
                self._weights.watch(parameter, path, expected=watched.is_weight(key))

    def disarm(self) -> None:
        """Take all hooks off; what was kept stays until `forget`."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._weights.unhook()
        self._mode.close()
        self._frames.clear()

    def take(self) -> tuple[BackwardPass, ...]:
        """The backward passes since the last `take`, with their layer runs.

        The calls stay known until `forget` or `arm`: later ones may go on where they ended.
        """
        found = backward_passes(
            self._tasks, self._log.calls, self._weights, self._names, self.refused
        )
        self._tasks.clear()
        self._weights.forget()
        self._log.forget_gradients()
        return found

    def forget(self) -> None:
        """Drop all that was kept, keep watching."""
        self._log.clear()
        self._tasks.clear()
        self._weights.forget()
        self._steps.clear()
        self._names = Names()
        self.refused.clear()

    def _entering(
        self, name: str, watched: Watched
    ) -> Callable[[bool, nn.Module, tuple[Any, ...], Mapping[str, Any]], None]:
        loops = watched.is_step or isinstance(watched.module, nn.RNNCellBase)

        def enter(
            compiling: bool, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
        ) -> None:
            frame = KernelFrame(name, module, torch.is_grad_enabled(), watched.sure)
            self._frames.append(frame)
            if not frame.grad or _inside_a_transform():
                frame.grad = False
                return
            if compiling and (loops or compiles_layers()):
                frame.grad = False
                self._refuse(refuse_compiled(name), name)
                return
            if watched.is_step:
                self._enter_step(frame, args, kwargs)
                return
            with self.faults.guard("watching a forward pass"):
                _note_order(frame, args, kwargs)
            self._mode.open()

        return enter

    def _enter_step(
        self, frame: KernelFrame, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> None:
        with self.faults.guard(f"watching a step of {frame.owner or 'the model'}"):
            try:
                frame.asked = self._steps.before(frame, args, kwargs)
            except (NotSupported, CaptureFault):
                if frame.sure:
                    raise

    def _refuse(self, why: NotSupported, owner: str) -> None:
        self.refused[owner] = str(why)
        with self.faults.guard(f"watching {owner or 'the model'}"):
            raise why

    def _leave(self, compiling: bool, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if not self._frames or self._frames[-1].module is not module:
            return None
        frame = self._frames.pop()
        if not any(other.grad for other in self._frames):
            self._mode.close()
        if frame.asked is not None and output is not None:
            return self._leave_step(frame, output)
        if frame.last is not None and frame.last.plan.unsorted is not None:
            with self.faults.guard("watching a forward pass"):
                self._note_final(frame, output)
        return None

    def _leave_step(self, frame: KernelFrame, output: Any) -> Any:
        with self.faults.guard(f"watching a step of {frame.owner or 'the model'}"):
            try:
                return self._steps.after(frame, frame.asked, output)
            except (NotSupported, CaptureFault):
                if frame.sure:
                    raise
        return None

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
        outputs = self._kernels.run(frame, found[0])
        return outputs if len(outputs) > 1 else outputs[0]

    def _note_final(self, frame: KernelFrame, output: Any) -> None:
        """The final state as an unsorted packed call returned it: in the user's order, elsewhere in memory."""
        assert frame.last is not None
        if not isinstance(output, tuple) or len(output) != 2:
            return
        final = output[1] if isinstance(output[1], tuple) else (output[1],)
        for slot, part in enumerate(final, 1):
            self._log.ends.add_alias(frame.last, slot, part)


def _inside_a_transform() -> bool:
    """Whether a transform of torch.func runs: its gradients are no backward pass, and reach no parameter's .grad."""
    return torch._C._functorch.peek_interpreter_stack() is not None


def _note_order(frame: KernelFrame, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
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
