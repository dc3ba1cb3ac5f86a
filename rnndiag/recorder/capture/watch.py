"""Watches a model's recurrent modules: records forward and backward passes while armed; `take` replays them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils.hooks import RemovableHandle

from rnndiag.engine.cells import KNOWN_RECURRENCES, Cell
from rnndiag.engine.segments.marks import edge_of
from rnndiag.errors import CaptureFault, NotSupported
from rnndiag.recorder.capture import engine_entry
from rnndiag.recorder.capture.backward_pass import Hook, Tasks
from rnndiag.recorder.capture.call_log import CallLog
from rnndiag.recorder.capture.compiled import compiles_layers, pass_over, refuse_compiled, shielded
from rnndiag.recorder.capture.hook import ModuleHook
from rnndiag.recorder.capture.kernel_calls import KernelCalls, KernelFrame, Prepared
from rnndiag.recorder.capture.kernel_mode import KernelMode
from rnndiag.recorder.capture.kernels import kernel_table, read_call
from rnndiag.recorder.capture.loop_calls import LoopCalls
from rnndiag.recorder.capture.loops import Loops, find_loops
from rnndiag.recorder.capture.modules import Watched, recurrent_modules
from rnndiag.recorder.capture.parallel_scans import scan_in
from rnndiag.recorder.capture.passes import BackwardPass, Names, backward_passes
from rnndiag.recorder.capture.sample_mixing import Samples, samples_of
from rnndiag.recorder.capture.step_calls import StepModules
from rnndiag.recorder.capture.weights import Weights
from rnndiag.recorder.carry import collect, stop_collecting
from rnndiag.recorder.faults import Faults

WATCHING = "watching the model's passes"
_SECOND_ORDER = (
    "a gradient of a gradient (create_graph=True) was taken in this step, and may flow through the loop "
    "again"
)
_NO_RECURRENCE = (
    f"no module that it went through is a known recurrence ({KNOWN_RECURRENCES}) or hands a state "
    "from call to call"
)
"""How faults of the hooks are named."""


def _unscaled() -> float:
    return 1.0


class Capture:
    """Records the calls of a model's recurrent modules by hooks, from `arm` to `disarm`.

    steps: names or classes of further modules that do one step of a recurrence. loss_scale: read during every backward
    pass; gradients are divided by it. timer: context around measurements made before a backward pass.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        steps: Iterable[str | type] = (),
        loss_scale: Callable[[], float] = _unscaled,
        faults: Faults | None = None,
        timer: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        self.model = model
        self.faults = Faults(strict=True) if faults is None else faults
        self.modules = recurrent_modules(model, steps)
        self._tasks = Tasks(loss_scale, guard=self.guarded)
        self.spoilt = False
        """Whether a fault of the recorder ended the recording of this step."""
        self._keeps_graph = False
        """Whether a backward pass kept its graph for another one."""
        self._weights = Weights(self._tasks)
        self._log = CallLog(self._tasks, self._weights)
        self._kernels = KernelCalls(self._log)
        self._steps = StepModules(self._log)
        self._names = Names()
        self._timer = timer
        self._listens = False
        self._overlooked: set[str] = set()
        self.refused: dict[str, str] = {}
        """Module -> why it is not watched."""
        self.unseen: dict[str, str] = {}
        """What a backward pass went through that looks like a recurrence but could not be followed -> why."""
        self.measure_lags = True
        """Whether loops that the replay does not describe are measured on their graph."""
        self.max_lags: int | None = None
        """Most lags measured on a graph: each costs a backward pass through its loop."""
        self.loop_calls = LoopCalls()
        self.independent: bool | None = None
        """Whether the loss is a sum over the samples of the batch; None: determine it in each backward pass."""
        self._loops: dict[int, Loops] = {}
        """Backward pass -> the loops found before it ran."""
        self._samples: dict[int, Samples] = {}
        self._frames: list[KernelFrame] = []
        self._mode = KernelMode(self._on_kernel, kernel_table())
        self._handles: list[RemovableHandle] = []

    @property
    def armed(self) -> bool:
        """Whether the hooks are on."""
        return self._listens

    def arm(self) -> None:
        """Install the hooks, and drop what was recorded before."""
        self.disarm()
        self.forget()
        collect(self)
        engine_entry.listen(self._before_backward)
        self._listens = True
        pass_over(ModuleHook.__call__, KernelMode.__torch_function__)
        self._mode = KernelMode(self._on_kernel, kernel_table())
        for name, watched in self.modules.items():
            module = watched.module
            enter = ModuleHook(module, shielded(self._entering(name, watched)), self._spoil)
            leave = ModuleHook(module, shielded(self._leave), self._spoil)
            self._handles += [
                module.register_forward_pre_hook(enter, with_kwargs=True),
                module.register_forward_hook(leave, always_call=True),
            ]
            for key, parameter in module.named_parameters():
                # before the forward pass, so that the gradient of a call that was not recorded is noticed
                path = f"{name}.{key}" if name else key
                self._weights.watch(parameter, path, expected=watched.is_weight(key))

    def disarm(self) -> None:
        """Remove all hooks; what was recorded stays until `forget`."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        stop_collecting(self)
        engine_entry.leave(self._before_backward)
        self._listens = False
        self._weights.unhook()
        self._mode.close()
        self._frames.clear()

    def take(self) -> tuple[BackwardPass, ...]:
        """The backward passes since the last `take`, with their layer runs.

        The calls are kept until `forget` or `arm`: later calls may continue from their final states.
        """
        found = backward_passes(
            self._tasks,
            self._log.calls,
            self._weights,
            self._names,
            self.refused,
            self._loops,
            self._samples,
        )
        self._loops.clear()
        self._samples.clear()
        self._tasks.clear()
        self._weights.forget()
        if not self._keeps_graph:
            self._log.spend()
        self._log.forget_gradients()
        return tuple(replace(one, unseen=dict(self.unseen)) for one in found)

    def forget_spent(self) -> None:
        """Drop calls whose graph was freed by a backward pass; others may still get gradients."""
        self._log.clear_spent()
        self._loops.clear()
        self._samples.clear()
        self._tasks.clear()
        self._weights.forget()
        self._names = Names()
        self.refused.clear()
        self.unseen.clear()
        self.spoilt = self._keeps_graph = False

    def forget(self) -> None:
        """Drop everything recorded, and keep watching."""
        self._log.clear()
        self.loop_calls.clear()
        self._loops.clear()
        self._samples.clear()
        self._tasks.clear()
        self._weights.forget()
        self._steps.clear()
        self._names = Names()
        self.refused.clear()
        self.unseen.clear()
        self.spoilt = self._keeps_graph = False

    @contextmanager
    def overlook(self, name: str) -> Iterator[None]:
        """Ignore the calls of one module: they are recorded in another way."""
        for key, parameter in self.modules[name].module.named_parameters():
            path = f"{name}.{key}" if name else key
            self._weights.watch(parameter, path).expected = False
        self._overlooked.add(name)
        try:
            yield
        finally:
            self._overlooked.discard(name)

    def guarded(self, hook: Hook) -> Hook:
        """Wrap a hook so that its fault ends the recording of this step and not the backward pass."""

        def guarded(*args: Any) -> None:
            if self.spoilt:
                return
            try:
                hook(*args)
            except Exception as error:  # noqa: BLE001 - no fault may end a backward pass
                self._spoil(error)

        return guarded

    def _spoil(self, error: Exception) -> None:
        """Handle a fault of a hook: the record of this step is incomplete, so the rest of it is not watched.

        Args:
            error: The fault, raised where faults are (`strict`).
        """
        if self.faults.strict:
            raise error
        self.spoilt = True
        self._frames.clear()
        self._mode.close()
        self.faults.add(WATCHING, error)

    def _entering(
        self, name: str, watched: Watched
    ) -> Callable[[bool, nn.Module, tuple[Any, ...], Mapping[str, Any]], None]:
        loops = watched.is_step or isinstance(watched.module, nn.RNNCellBase)

        def enter(
            compiling: bool, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
        ) -> None:
            if self.spoilt or name in self._overlooked:
                return
            frame = KernelFrame(name, module, torch.is_grad_enabled(), watched.sure)
            frame.given = args, dict(kwargs)
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
            except (NotSupported, CaptureFault) as limit:
                self._no_replay(frame, limit)

    def _refuse(self, why: NotSupported, owner: str) -> None:
        self.refused[owner] = str(why)
        with self.faults.guard(f"watching {owner or 'the model'}"):
            raise why

    def _leave(self, compiling: bool, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if self.spoilt:
            self._mode.close()  # the fault may have come up inside of a kernel's call
        if not self._frames or self._frames[-1].module is not module:
            return None
        frame = self._frames.pop()
        if not any(other.grad for other in self._frames):
            self._mode.close()
        if not frame.grad or output is None:
            return None
        changed = output
        if frame.asked is not None:
            changed = self._leave_step(frame, output)
        if frame.last is not None and frame.last.plan.unsorted is not None:
            with self.faults.guard("watching a forward pass"):
                self._note_final(frame, output)
        with self.faults.guard("marking the state of a step"):
            changed = self._mark(frame, changed)
        return None if changed is output else changed

    def _mark(self, frame: KernelFrame, output: Any) -> Any:
        """The output, its tensors marked as the state of one step if the module may be called in a loop."""
        module = frame.module
        if isinstance(module, nn.RNNBase):
            packed = isinstance(output, tuple) and isinstance(output[0], PackedSequence)
            if packed or module.bidirectional:
                return output
        return self.loop_calls.module_called(frame.owner, module, *frame.given, output, frame.last)

    def _no_replay(self, frame: KernelFrame, limit: NotSupported | CaptureFault) -> None:
        """Note that a step cannot be replayed; its loop may be measured on the graph."""
        if frame.sure:
            self.refused.setdefault(frame.owner, str(limit))

    def carried(self, site: str, state: tuple[Any, ...]) -> tuple[Any, ...]:
        """Mark the tensors of the state given to `rnndiag.carry`."""
        if self.spoilt:
            return state
        try:
            return self.loop_calls.carried(site, state)
        except Exception as error:  # noqa: BLE001 - no fault may end a forward pass
            self._spoil(error)
            return state

    def _before_backward(
        self, roots: Sequence[Any], given: Sequence[Tensor | None], keeps_graph: bool
    ) -> Callable[[], None] | None:
        self._keeps_graph |= keeps_graph
        try:
            if self.spoilt:
                return None
            samples = self._look_at_samples(roots, given)
            return self.guarded(self._find_loops(roots, given, keeps_graph, samples))
        except Exception as error:  # noqa: BLE001 - no fault may end a backward pass
            self._spoil(error)
        return None

    def _look_at_samples(self, roots: Sequence[Any], given: Sequence[Tensor | None]) -> Samples:
        if not self._log.calls:
            return Samples()
        with self.faults.guard("looking whether the loss mixes samples"), self._timer():
            return samples_of(self._log.calls, roots, given, self.independent)
        return Samples()

    def _find_loops(
        self,
        roots: Sequence[Any],
        given: Sequence[Tensor | None],
        keeps_graph: bool,
        samples: Samples,
    ) -> Callable[[], None]:
        """Find and measure the loops of a backward pass while its graph exists."""
        found, before = Loops(), set(self._tasks.scales)
        scale = 1.0
        if self.loop_calls.calls:
            with self.faults.guard("looking for loops"), self._timer():
                found, reached = find_loops(
                    self.loop_calls.calls,
                    roots,
                    given,
                    self.model,
                    self.measure_lags,
                    self.max_lags,
                )
                if self._tasks.double:
                    found = found.withdrawn(_SECOND_ORDER)
                scale = self._tasks.loss_scale()
                self.unseen |= self.loop_calls.alone(reached)
                if not keeps_graph:
                    self.loop_calls.drop(reached)
        known = found.tells or self.unseen or self.refused
        if not (known or any(call.sure or call.links for call in self._log.calls)):
            with self.faults.guard("looking for scans"), self._timer():
                names = {id(value): name for name, value in self.model.named_parameters()}
                scan = scan_in([edge_of(root)[0] for root in roots], names)
                self.unseen["its backward pass"] = scan or _NO_RECURRENCE

        def done() -> None:
            new = [task for task in self._tasks.scales if task not in before]
            if new:
                self._loops[new[0]], self._samples[new[0]] = found, samples
            elif found.tells:
                # a pass without any recorded call, only `carry`
                number = min((-2, *(task - 1 for task in self._tasks.scales)))
                self._tasks.scales[number] = scale
                self._loops[number] = found

        return done

    def _leave_step(self, frame: KernelFrame, output: Any) -> Any:
        with self.faults.guard(f"watching a step of {frame.owner or 'the model'}"):
            try:
                return self._steps.after(frame, frame.asked, output)
            except (NotSupported, CaptureFault) as limit:
                self._no_replay(frame, limit)
        return output

    def _on_kernel(
        self,
        cell: Cell,
        one_step: bool,
        kernel: Any,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> Any:
        prepared: Prepared | None = None
        try:
            prepared = self._before_kernel(cell, one_step, kernel, args, kwargs)
        except Exception as error:  # noqa: BLE001 - no fault may end a forward pass
            self._spoil(error)
        if prepared is None:
            return kernel(*args, **kwargs)
        # not guarded: an exception of the kernel belongs to the user, or ends a checkpoint's recomputation
        returned = kernel(*prepared.args, **prepared.kwargs)
        try:
            with self.faults.guard("watching a recurrent call"):
                return self._kernels.after(self._frames[-1], prepared, returned)
        except Exception as error:  # noqa: BLE001 - whatever fails here, what the kernel returned is right
            self._spoil(error)
        return returned

    def _before_kernel(
        self,
        cell: Cell,
        one_step: bool,
        kernel: Any,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> Prepared | None:
        """Prepare the record of a kernel call; None if it is not watched."""
        frame = self._frames[-1] if self._frames else None
        if frame is None or not torch.is_grad_enabled():
            return None
        with self.faults.guard("reading a kernel call"):
            asked = read_call(cell, one_step, kernel, args, kwargs)
            return self._kernels.before(frame, asked, args, kwargs)
        return None

    def _note_final(self, frame: KernelFrame, output: Any) -> None:
        """Register the final state of an unsorted packed call as returned: reordered, so elsewhere in memory."""
        assert frame.last is not None
        if not isinstance(output, tuple) or len(output) != 2:
            return
        final = output[1] if isinstance(output[1], tuple) else (output[1],)
        for slot, part in enumerate(final, 1):
            self._log.ends.add_alias(frame.last, slot, part)


def _inside_a_transform() -> bool:
    """Whether a transform of torch.func runs: its gradients are not a backward pass and do not reach .grad."""
    return torch._C._functorch.peek_interpreter_stack() is not None


def _note_order(frame: KernelFrame, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """For a packed batch in unsorted order, store in the frame its order and the initial state in that order."""
    given = args[0] if args else kwargs.get("input")
    if not isinstance(given, PackedSequence) or given.unsorted_indices is None:
        return
    frame.unsorted = given.unsorted_indices
    hx = args[1] if len(args) > 1 else kwargs.get("hx")
    if isinstance(hx, Tensor):
        frame.hx = (hx,)
    elif isinstance(hx, tuple):
        frame.hx = hx
