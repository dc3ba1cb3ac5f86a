"""Chooses the layer that `memory_need` tests, and the adapter that replaces its outputs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from rnndiag.errors import BadArgument, NotSupported
from rnndiag.recorder.capture.step_signature import may_be_step
from rnndiag.recorder.need.layer_output import CellOutput, FusedOutput, LayerOutput
from rnndiag.recorder.need.output_loss import LossFn, OutputLoss, loss_with_gradient
from rnndiag.recorder.need.step_output import StepOutput
from rnndiag.recorder.replay.kept_call import tensors_in


def chosen_layer(
    model: nn.Module, loss_fn: LossFn, batch: Any, name: str | None
) -> tuple[LayerOutput, tuple[str, ...]]:
    """The layer to test, and the names of recurrent layers that run after it.

    Without a name: the recurrent layer that runs last among those whose outputs the loss depends on; a step module of
    the user's own only where no layer or cell of torch does.
    """
    known = dict(model.named_modules())
    if name is not None and name not in known:
        order = _order_of_calls(model, loss_fn, batch, _torch_layers(known))
        raise BadArgument(
            f"The model has no module {name!r}.",
            f"Recurrent layers that ran: {', '.join(order) or 'none'}.",
        )
    named = {} if name is None else {name: known[name]}
    order = _order_of_calls(model, loss_fn, batch, {**_torch_layers(known), **named})
    if not order:
        steps = {found: module for found, module in known.items() if may_be_step(module)}
        order = _order_of_calls(model, loss_fn, batch, steps, fewest=2)
    if not order:
        raise NotSupported(
            "No nn.RNN, nn.LSTM, nn.GRU, cell of theirs or step module ran whose outputs the loss depends on.",
            "A loop written by hand, with or without rnndiag.carry, has no output that can be replaced: move one step "
            "into an nn.Module that takes (input, state) and returns the new state.",
        )
    if name is None:
        name = order[-1]
    layer = _layer_output(name, known[name])
    if name not in order:
        raise NotSupported(
            f"{name} did not run, or the loss does not depend on its outputs.",
            f"Recurrent layers that ran: {', '.join(order)}.",
        )
    later = order[order.index(name) + 1 :]
    layer.with_cell = layer.parts == 2 and _reads_cell(model, loss_fn, batch, layer)
    return layer, tuple(later)


def _torch_layers(modules: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    return {
        name: module
        for name, module in modules.items()
        if isinstance(module, nn.RNNBase | nn.RNNCellBase)
    }


def _layer_output(name: str, module: nn.Module) -> LayerOutput:
    """The adapter for a recurrent module."""
    if isinstance(module, nn.RNNBase):
        if module.bidirectional:
            raise NotSupported(
                f"{name} is bidirectional: each output also depends on later inputs, so the loss "
                "cannot be split by how far back an input lies.",
                "Name a one-directional layer with layer=, or test the forward direction as a layer of its own.",
            )
        return FusedOutput(name, module)
    if isinstance(module, nn.RNNCellBase):
        return CellOutput(name, module)
    if may_be_step(module):
        return StepOutput(name, module)
    raise NotSupported(
        f"{name or 'The model'} is a {type(module).__name__}, whose outputs cannot be replaced.",
        "Name an nn.RNN, nn.LSTM or nn.GRU, one of their cells, or a step module: its forward takes (input, state), "
        "the second called state, h, hx or the like.",
    )


def _order_of_calls(
    model: nn.Module,
    loss_fn: LossFn,
    batch: Any,
    modules: Mapping[str, nn.Module],
    fewest: int = 1,
) -> list[str]:
    """Names of modules that ran `fewest` times and that the loss depends on, ordered by the end of their first call."""
    outputs: dict[str, list[Tensor]] = {}
    calls: Counter[str] = Counter()
    handles = []
    for name, module in modules.items():

        def note(_module: nn.Module, _given: Any, returned: Any, name: str = name) -> None:
            calls[name] += 1
            found = [one for one in tensors_in(returned) if one.is_floating_point()]
            outputs.setdefault(name, []).extend(found)

        handles.append(module.register_forward_hook(note))
    try:
        with torch.enable_grad():
            loss = loss_with_gradient(loss_fn(model, batch))
    finally:
        for handle in handles:
            handle.remove()
    flat = [(name, one) for name, made in outputs.items() for one in made if one.requires_grad]
    reached, connected = set(), set()
    for name, one in flat:
        gradient: tuple[Tensor | None, ...] = torch.autograd.grad(
            loss, one, retain_graph=True, allow_unused=True
        )
        if gradient[0] is not None:
            connected.add(name)
            if bool(gradient[0].any()):
                reached.add(name)
    # On a batch that is solved exactly no gradient is left.
    found = reached or connected
    return [name for name in outputs if name in found and calls[name] >= fewest]


def _reads_cell(model: nn.Module, loss_fn: LossFn, batch: Any, layer: LayerOutput) -> bool:
    """Whether the loss depends on the cell states that the layer returned, given its outputs h."""
    layer.with_cell = True
    loss = OutputLoss(model, loss_fn, layer, seed=0)
    gradient = loss.sample(batch, 0).gradient
    size = gradient.shape[-1] - layer.cell_size()
    return bool((gradient[..., size:] != 0).any())
