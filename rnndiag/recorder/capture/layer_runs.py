"""Converts one recorded recurrence into LayerRuns of its layers and directions for one backward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rnndiag.engine.adjoints import Adjoints, adjoints
from rnndiag.engine.cells import State
from rnndiag.engine.layer_run import LayerRun
from rnndiag.recorder.capture import resets
from rnndiag.recorder.capture.call import OUTPUT
from rnndiag.recorder.capture.chains import Chain
from rnndiag.recorder.capture.hidden_parts import Gates, complete_states
from rnndiag.recorder.capture.layout import flipped, lengths_of, to_steps, to_user_order
from rnndiag.recorder.capture.stack_replay import StackReplay, replay_stack

_WORK = {torch.float64: torch.float64}


@dataclass(frozen=True)
class Pass:
    """What is shared by all recurrences of one backward pass."""

    task: int
    scale: float
    gradients: Mapping[str, Tensor]
    """Parameter name -> gradient G, summed over all calls that share it."""
    name_of_end: Callable[[int, int], str | None]
    """(call, layer * directions + direction) -> the name of the run that ended there; None if not recorded."""
    independent: bool = True
    """Whether the loss is a sum over the samples of the batch."""


@torch.no_grad()
def layer_runs(
    chain: Chain, suffix: str, backward: Pass
) -> Iterator[tuple[LayerRun, Adjoints | None]]:
    """The runs of all layers and directions, top layer first, each with its adjoints if they were needed already.

    The direct gradient of a lower layer is what the adjoints of the layer above send down, through the dropout mask of
    the call. `suffix` ends every name (#2, @2).
    """
    plan = chain[0].plan
    make = _ChainReplay(chain, backward, suffix)
    above = make.output_gradient()
    for layer in reversed(range(plan.layers)):
        found = [make.run(layer, direction, above) for direction in range(plan.directions)]
        if layer == 0:
            yield from ((run, None) for run in found)
            return
        analysed = [adjoints(run) for run in found]
        yield from zip(found, analysed, strict=True)
        above = make.sent_down(layer, analysed)


SAFE = (1e-12, 1e15)
"""Squares of gradients up to this size, and of a millionth of it, are accurate in float32."""


def run_name(owner: str, layer: int, direction: int, one_step: bool, suffix: str) -> str:
    """Name of a run: encoder.lstm.l0, .l1.reverse, .l0#2; a loop over a cell has the cell's name."""
    place = "" if one_step else f"l{layer}" + (".reverse" if direction else "")
    return (".".join(filter(None, (owner, place))) or "cell") + suffix


class _ChainReplay:
    """The tensors of one chain, time-major and in the precision of the replay."""

    def __init__(self, chain: Chain, backward: Pass, suffix: str) -> None:
        first = chain[0]
        self.chain, self.backward, self.suffix = chain, backward, suffix
        self.plan = first.plan
        self.precision = first.dtype
        self.work = _WORK.get(first.dtype, torch.float32)
        self.segments = resets.segments_of(chain)
        self.lengths = lengths_of(self.plan) if self.segments is None else self.segments.lengths
        self.stacks: tuple[StackReplay, ...] = ()
        if not self.plan.one_step:
            self.stacks = tuple(replay_stack(call) for call in chain)
        self.time_first = replace(self.plan, batch_first=False)

    def _as_computed(self, value: Tensor) -> Tensor:
        """Round the value as autocast did for the kernel; the replay then computes in the wider type."""
        if value.is_floating_point() and value.dtype != self.precision:
            value = value.to(self.precision)
        return value.to(self.work)

    def _steps(self, values: list[Tensor], time_first: bool = False) -> Tensor:
        plan = self.time_first if time_first else self.plan
        laid_out = [to_steps(plan, value) for value in values]
        whole = laid_out[0] if len(laid_out) == 1 else torch.cat(laid_out)
        return whole if self.segments is None else self.segments.cut(whole)

    def _below(self, layer: int) -> Tensor:
        if layer == 0:
            return self._as_computed(self._steps([call.inputs for call in self.chain]))
        outputs = []
        for stack in self.stacks:
            out, mask = stack.outputs[layer - 1], stack.masks[layer - 1]
            outputs.append(out if mask is None else out * mask)
        return self._steps(outputs, time_first=True).to(self.work)

    def _hidden(self, layer: int, direction: int) -> Tensor:
        outputs = self._steps([stack.outputs[layer] for stack in self.stacks], time_first=True)
        size = outputs.shape[-1] // self.plan.directions
        return outputs[..., direction * size : (direction + 1) * size].to(self.work)

    def output_gradient(self) -> Tensor | None:
        """∂L/∂y (T, B, D*S_h), without the part that came back through later calls of the chain."""
        found = [self._own_gradient(k, OUTPUT) for k in range(len(self.chain))]
        if all(value is None for value in found):
            return None
        whole = [
            torch.zeros_like(call.outputs[OUTPUT]) if value is None else value
            for call, value in zip(self.chain, found, strict=True)
        ]
        return self._unscaled(self._steps(whole))

    def _unscaled(self, gradient: Tensor) -> Tensor:
        gradient = gradient.to(self.work)
        return gradient if self.backward.scale == 1.0 else gradient / self.backward.scale

    def _own_gradient(self, k: int, slot: int) -> Tensor | None:
        """The gradient of the k-th call's output without the part from the chain's next call.

        If only that call used the output the difference is exactly zero: both are the same numbers.
        """
        call, task = self.chain[k], self.backward.task
        gradient = call.gradient(task, slot)
        if gradient is None or k + 1 == len(self.chain):
            return gradient
        after = self.chain[k + 1]
        carried = after.hx_gradients.get(task, {})
        for part, value in carried.items():
            link = after.links.get((part, 0))
            if link is None or link.slot != slot:
                continue
            value = resets.sent_back(value, link).to(gradient.dtype)  # as it arrived
            if slot == OUTPUT:
                gradient = gradient.clone()
                last = gradient[:, -1] if self.plan.batch_first else gradient[-1]
                last -= value[0]
            else:
                gradient = gradient - value
        return gradient

    def sent_down(self, layer: int, above: list[Adjoints]) -> Tensor:
        """Gradient of the output of the layer below: input gradients of all directions, through the dropout mask."""
        total: Tensor | None = None
        for direction, adj in enumerate(above):
            value = adj.inputs()
            value = flipped(value, self.lengths) if direction else value
            total = value if total is None else total + value
        assert total is not None
        masks = [stack.masks[layer - 1] for stack in self.stacks]
        if any(mask is not None for mask in masks):
            kept = [mask for mask in masks if mask is not None]
            total = total * self._steps(kept, time_first=True).to(self.work)
        return total

    def run(self, layer: int, direction: int, above: Tensor | None) -> LayerRun:
        """One layer in one direction."""
        chain, plan = self.chain, self.plan
        index = layer * plan.directions + direction
        weights = {
            key: self._as_computed(copy) for key, (_, copy) in chain[0].weights[index].items()
        }
        names = {key: weight.name for key, (weight, _) in chain[0].weights[index].items()}
        initial = self._initial(index)
        inputs = self._in_order(self._below(layer), direction)
        states, gates = self._states(layer, direction, weights, inputs, initial)
        run = LayerRun(
            name=run_name(chain[0].owner, layer, direction, plan.one_step, self.suffix),
            cell=plan.cell,
            weights=weights,
            inputs=inputs,
            states=states,
            initial=initial,
            direct=self._direct(direction, index, states, above),
            lengths=self.lengths,
            reverse=bool(direction),
            gradients={
                key: self._unscaled(self.backward.gradients[name])
                for key, name in names.items()
                if name in self.backward.gradients
            },
            parameters=names,
            input_gradient=self._input_gradient() if layer == 0 else None,
            initial_gradient=self._initial_gradient(index),
            tie=self._tie(index),
            notes=tuple(dict.fromkeys(note for call in chain for note in call.notes)),
            scale=self.backward.scale,
            independent=self.backward.independent,
            gates=gates,
        )
        return run.to(torch.float64) if _squares_leave_float32(run) else run

    def _initial(self, index: int) -> State:
        parts = range(len(self.plan.cell.parts))
        found = [self._starts([call.hx[part] for call in self.chain], index) for part in parts]
        return tuple(row.to(self.work) for row in found if row is not None)

    def _starts(self, values: Sequence[Tensor | None], index: int) -> Tensor | None:
        """The initial values (N, S) of all sequences from one value per call, (B, S) or (layers * directions, B, S)."""
        rows = [
            None
            if value is None
            else to_user_order(self.plan, value if self.plan.one_step else value[index])
            for value in values
        ]
        return resets.at_starts(self.chain, self.segments, rows)

    def _in_order(self, values: Tensor, direction: int) -> Tensor:
        return flipped(values, self.lengths) if direction else values

    def _states(
        self,
        layer: int,
        direction: int,
        weights: Mapping[str, Tensor],
        inputs: Tensor,
        initial: State,
    ) -> tuple[State, Gates | None]:
        cell = self.plan.cell
        if self.plan.one_step:
            slots = range(1, 1 + len(cell.parts))
            return tuple(
                self._steps([call.copies[slot] for call in self.chain]).to(self.work)
                for slot in slots
            ), None
        h = self._in_order(self._hidden(layer, direction), direction)
        states, gates = complete_states(cell, weights, inputs, h, initial)
        if self.lengths is None:
            return states, gates
        steps = torch.arange(len(h), device=h.device)[:, None]
        keep = (steps < self.lengths.to(h.device)[None, :])[..., None]
        return tuple(torch.where(keep, part, torch.zeros_like(part)) for part in states), gates

    def _direct(self, direction: int, index: int, states: State, above: Tensor | None) -> State:
        found: list[Tensor] = []
        for part, state in enumerate(states):
            value: Tensor | None = None
            if part == 0 and above is not None:
                size = state.shape[-1]
                value = above[..., direction * size : (direction + 1) * size]
                value = self._in_order(value, direction)
            finals = [self._final_gradient(k, part, index) for k in range(len(self.chain))]
            if any(final is not None for final in finals):
                value = torch.zeros_like(state) if value is None else value.clone()
                self._add_finals(value, finals)
            found.append(torch.zeros_like(state) if value is None else value)
        return tuple(found)

    def _final_gradient(self, k: int, part: int, index: int) -> Tensor | None:
        gradient = self._own_gradient(k, 1 + part)
        if gradient is None:
            return None
        row = gradient if self.plan.one_step else gradient[index]
        return self._unscaled(to_user_order(self.plan, row))

    def _add_finals(self, direct: Tensor, finals: list[Tensor | None]) -> None:
        """Add the gradient of every call's returned final state to `direct` at that call's last step."""
        if self.segments is not None:
            direct += self.segments.cut(resets.at_ends(self.chain, finals))
            return
        if self.lengths is not None:
            final = finals[0]
            assert final is not None
            last = self.lengths.to(direct.device) - 1
            direct[last, torch.arange(direct.shape[1], device=direct.device)] += final
            return
        end = 0
        for call, final in zip(self.chain, finals, strict=True):
            end += call.steps
            if final is not None:
                direct[end - 1] += final

    def _input_gradient(self) -> Tensor | None:
        if self.plan.directions != 1:
            return None
        found = [call.input_gradients.get(self.backward.task) for call in self.chain]
        kept = [value for value in found if value is not None]
        return self._unscaled(self._steps(kept)) if len(kept) == len(found) else None

    def _initial_gradient(self, index: int) -> State | None:
        given = [call.hx_gradients.get(self.backward.task, {}) for call in self.chain]
        parts = range(len(self.plan.cell.parts))
        found = [self._starts([by_part.get(part) for by_part in given], index) for part in parts]
        kept = tuple(self._unscaled(row) for row in found if row is not None)
        return kept if len(kept) == len(found) else None

    def _tie(self, index: int) -> str:
        first = self.chain[0]
        link = first.links.get((0, index))
        if link is not None and not (link.carried is None or link.carried.all()):
            link = None
        source = None if link is None else self.backward.name_of_end(link.call, link.index)
        if link is None or source is None:
            # without a kind: another part is a final state, or this one is that of a run that was not recorded
            kinds = (set(first.hx_kind) or {"given"}) | resets.kinds_of_reset(self.chain)
            return next(kind for kind in ("learnt", "given", "zero") if kind in kinds)
        return f"{'run' if link.attached else 'detached'}:{source}"


def _squares_leave_float32(run: LayerRun) -> bool:
    """Whether squares of the gradients, or of their sums, under- or overflow in float32.

    That happens if the loss was scaled by a very small or large number; the norms are then computed in float64.
    """
    if run.dtype != torch.float32:
        return False
    sizes = [part.abs().max() for part in (*run.direct, *run.gradients.values()) if part.numel()]
    largest = float(torch.stack(sizes).max()) if sizes else 0.0
    return 0.0 < largest < SAFE[0] or SAFE[1] < largest < float("inf")
