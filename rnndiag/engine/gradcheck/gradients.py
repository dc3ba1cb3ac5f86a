"""Vector-Jacobian products of a kernel: one cotangent of its results, and the gradient of each target."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from rnndiag.engine.gradcheck.nested import Function, Tensors
from rnndiag.errors import BadArgument


@dataclass(frozen=True)
class Point:
    """Where a kernel is checked: its arguments, its parameters, and all their names."""

    inputs: Tensors
    state: Tensors
    parameters: Mapping[str, Tensor] = field(default_factory=dict)
    input_names: tuple[str, ...] = ()
    state_names: tuple[str, ...] = ()

    def tensor(self, name: str) -> Tensor:
        """The argument or parameter of that name."""
        named = zip(
            (*self.input_names, *self.state_names), (*self.inputs, *self.state), strict=True
        )
        return {**self.parameters, **dict(named)}[name]

    def targets(self) -> tuple[str, ...]:
        """Names of everything that a gradient is computed of."""
        named = zip(
            (*self.input_names, *self.state_names), (*self.inputs, *self.state), strict=True
        )
        return (*self.parameters, *(name for name, tensor in named if tensor.is_floating_point()))


@dataclass(frozen=True)
class Cotangent:
    """Weights of the outputs and of each part of the final state; None where a loss does not use that part."""

    name: str
    outputs: tuple[Tensor | None, ...]
    final: tuple[Tensor | None, ...]

    def parts(self) -> tuple[Tensor | None, ...]:
        return (*self.outputs, *self.final)

    def dot(self, outputs: Tensors, final: Tensors) -> float:
        """The loss that has this cotangent: Σ v·y in float64."""
        pairs = zip(self.parts(), (*outputs, *final), strict=True)
        return sum(
            float((v.double() * y.detach().double()).sum()) for v, y in pairs if v is not None
        )


@dataclass(frozen=True)
class Gradients:
    """The results of one forward and backward pass: values, and a gradient per target (None: no path to it)."""

    outputs: Tensors
    final: Tensors
    of: dict[str, Tensor | None]


def draw_cotangents(
    outputs: Tensors, final: Tensors, state_names: tuple[str, ...], generator: torch.Generator
) -> list[Cotangent]:
    """Random cotangents: of the outputs alone, of each part of the final state alone, and of all together."""

    def draw(like: Tensor) -> Tensor | None:
        if not like.is_floating_point():
            return None
        drawn = torch.randn(like.shape, generator=generator, dtype=torch.float64)
        return drawn.to(like.device, like.dtype)

    of_outputs = tuple(draw(y) for y in outputs)
    of_final = tuple(draw(s) for s in final)
    nothing = (None,) * len(final)
    found = [Cotangent("outputs", of_outputs, nothing)]
    for index, name in enumerate(state_names):
        alone = tuple(v if i == index else None for i, v in enumerate(of_final))
        if of_final[index] is not None:
            found.append(Cotangent(f"final {name}", (None,) * len(outputs), alone))
    return [*found, Cotangent("both", of_outputs, of_final)]


def gradients(
    function: Function,
    point: Point,
    cotangent: Cotangent,
    without: tuple[str, ...] = (),
    counterparts: Mapping[str, Tensor] | None = None,
) -> Gradients:
    """Gradient of Σ v·y by the function's own backward pass.

    Args:
        function: The kernel, or another function of the same arguments.
        point: Arguments and parameters.
        cotangent: The weights v.
        without: Arguments that do not require a gradient in this run; their targets are left out.
        counterparts: Parameter tensors of `function` where they are not those of the point.

    Raises:
        BadArgument: The final state does not look like the initial state.
    """
    parameters = point.parameters if counterparts is None else counterparts

    def leaf(name: str, tensor: Tensor) -> Tensor:
        # A copy: a kernel that writes into its arguments must not change the point.
        wanted = tensor.is_floating_point() and name not in without
        return tensor.detach().clone().requires_grad_(wanted)

    inputs = tuple(map(leaf, point.input_names, point.inputs))
    state = tuple(map(leaf, point.state_names, point.state))
    with torch.enable_grad():
        # autograd refuses a kernel that writes into leaves; `unchanged_arguments` names that fault better.
        outputs, final = function(tuple(x.clone() for x in inputs), tuple(s.clone() for s in state))
    check_final(final, point)
    named = {
        **parameters,
        **dict(zip(point.input_names, inputs, strict=True)),
        **dict(zip(point.state_names, state, strict=True)),
    }
    wanted = {name: t for name, t in named.items() if t.requires_grad}
    pairs = zip((*outputs, *final), cotangent.parts(), strict=True)
    tied = [(y, v.to(y.dtype)) for y, v in pairs if v is not None and y.requires_grad]
    found: tuple[Tensor | None, ...] = (None,) * len(wanted)
    if tied and wanted:
        results, weights = zip(*tied, strict=True)
        found = torch.autograd.grad(results, list(wanted.values()), weights, allow_unused=True)
    detached = [tuple(t.detach() for t in part) for part in (outputs, final)]
    return Gradients(detached[0], detached[1], dict(zip(wanted, found, strict=True)))


def check_final(final: Tensors, point: Point) -> None:
    """Raise unless the final state can be passed as an initial state."""
    shapes = [tuple(t.shape) for t in final], [tuple(t.shape) for t in point.state]
    if shapes[0] != shapes[1]:
        raise BadArgument(
            f"The final state has shapes {shapes[0]}, the initial state {shapes[1]}.",
            "The kernel must return a state that it would take as its initial state.",
        )
