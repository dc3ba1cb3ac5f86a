"""Recomputes what a kernel does not return: outputs of the lower layers of a stack, and the dropout masks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rnndiag.engine.cells import State
from rnndiag.recorder.capture.call import OUTPUT, Call
from rnndiag.recorder.capture.kernels import run_sequence


@dataclass(frozen=True)
class StackReplay:
    """Per layer: its output in the kernel's layout (time first), and the mask between it and the next, or None."""

    outputs: tuple[Tensor, ...]
    masks: tuple[Tensor | None, ...]


OTHER_MASKS = (
    "other dropout masks between the layers than the call's own, which its device does not tell"
)


def tells_masks(device: torch.device) -> bool:
    """Whether the dropout masks of a call can be drawn again; cuDNN does not expose their random state."""
    return device.type == "cpu"


@contextmanager
def random_state(state: Tensor | None, device: torch.device) -> Iterator[None]:
    """Draw from the CPU's generator at a given state, if one is given; afterwards all generators are restored."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        if state is not None:
            torch.set_rng_state(state)
        yield


@torch.no_grad()
def replay_stack(call: Call) -> StackReplay:
    """Run the layers below the top one again, one by one, with the weights and masks of the call."""
    plan, top = call.plan, recorded_output(call)
    if plan.layers == 1:
        return StackReplay((top,), ())
    outputs: list[Tensor] = []
    masks: list[Tensor | None] = []
    below = call.inputs.transpose(0, 1) if plan.batch_first else call.inputs
    with random_state(call.random_state, call.inputs.device), call.autocast.again():
        for layer in range(plan.layers - 1):
            out = _one_layer(call, layer, below)
            outputs.append(out)
            mask = None
            if plan.dropout > 0.0:
                mask = torch.dropout(torch.ones_like(out), plan.dropout, train=True)
            masks.append(mask)
            below = out if mask is None else out * mask
    return StackReplay((*outputs, top), tuple(masks))


def recorded_output(call: Call) -> Tensor:
    """y of the call, time first; recomputed if it was written to in place."""
    plan = call.plan
    y = call.outputs[OUTPUT]
    if y._version != call.versions[OUTPUT]:
        y = _run_again(call)
    return y.transpose(0, 1) if plan.batch_first else y


@torch.no_grad()
def _run_again(call: Call) -> Tensor:
    plan = call.plan
    flat = [copy for group in call.weights for _, copy in group.values()]
    first = call.hx if len(plan.cell.parts) > 1 else call.hx[0]
    with random_state(call.random_state, call.inputs.device), call.autocast.again():
        return run_sequence(plan, call.inputs, first, flat)[0]


def _one_layer(call: Call, layer: int, below: Tensor) -> Tensor:
    plan = call.plan
    groups = slice(layer * plan.directions, (layer + 1) * plan.directions)
    flat = [copy for group in call.weights[groups] for _, copy in group.values()]
    hx: State = tuple(part[groups] for part in call.hx)
    single = replace(plan, layers=1, dropout=0.0, batch_first=False)
    return run_sequence(single, below, hx if len(hx) > 1 else hx[0], flat)[0]
