"""Finds the parameters of a kernel, and runs it in another dtype."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn

from rnndiag.engine.gradcheck.nested import Tensors
from rnndiag.errors import BadArgument


def owned_tensors(owner: Any, name: str = "", seen: set[int] | None = None) -> dict[str, Tensor]:
    """Tensors held by a callable: a module's own, closure variables of a function, arguments of a partial."""
    seen = set() if seen is None else seen
    if id(owner) in seen:
        return {}
    seen.add(id(owner))
    if isinstance(owner, Tensor):
        return {name: owner}
    if isinstance(owner, nn.Module):
        prefix = f"{name}." if name else ""
        own = {**dict(owner.named_parameters()), **dict(owner.named_buffers())}
        return {prefix + key: value for key, value in own.items()}
    found: dict[str, Tensor] = {}
    for key, part in _parts(owner, name):
        found |= {k: v for k, v in owned_tensors(part, key, seen).items() if k not in found}
    return found


def _parts(owner: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Objects that a function, a bound method, a partial or a container refers to."""
    if isinstance(owner, MethodType):
        yield name, owner.__self__
        yield name, owner.__func__
    elif isinstance(owner, functools.partial):
        yield name, owner.func
        yield from ((f"argument {i}", value) for i, value in enumerate(owner.args))
        yield from owner.keywords.items()
    elif isinstance(owner, FunctionType):
        cells = zip(owner.__code__.co_freevars, owner.__closure__ or (), strict=True)
        for key, cell in cells:
            try:
                yield key, cell.cell_contents
            except ValueError:  # noqa: PERF203 - a name that is not bound yet
                continue
        module_names = owner.__globals__
        for key in owner.__code__.co_names:
            # Modules of Python and classes are skipped: they hold no parameters of this kernel.
            value = module_names.get(key)
            if isinstance(value, Tensor | nn.Module | FunctionType | functools.partial):
                yield key, value
    elif isinstance(owner, Mapping):
        yield from ((f"{name}[{key!r}]", value) for key, value in owner.items())
    elif isinstance(owner, tuple | list):
        yield from ((f"{name}[{index}]", value) for index, value in enumerate(owner))


def graph_leaves(results: Iterable[Tensor]) -> list[Tensor]:
    """Leaf tensors that require a gradient and that `results` were computed from, by the autograd graph."""
    stack = [tensor.grad_fn for tensor in results if tensor.grad_fn is not None]
    seen: set[Any] = set(stack)
    found: list[Tensor] = []
    while stack:
        node = stack.pop()
        if hasattr(node, "variable"):
            found.append(node.variable)
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                stack.append(following)
    return found


def kernel_parameters(owned: Mapping[str, Tensor], used: Iterable[Tensor]) -> dict[str, Tensor]:
    """Parameters by name: the owned leaves that require a gradient, then those found in the graph only."""
    found: dict[str, Tensor] = {}
    known: set[int] = set()
    for name, tensor in owned.items():
        if tensor.requires_grad and tensor.is_leaf and id(tensor) not in known:
            known.add(id(tensor))
            found[name] = tensor
    for tensor in used:
        if id(tensor) not in known:
            known.add(id(tensor))
            found[f"parameter {len(found)} {tuple(tensor.shape)}"] = tensor
    return found


def given_parameters(parameters: Any) -> dict[str, Tensor]:
    """The argument `parameters`: a module, a dict of tensors, or tensors in order, which are named by their index."""
    if isinstance(parameters, nn.Module):
        named: dict[str, Any] = dict(parameters.named_parameters())
    elif isinstance(parameters, Mapping):
        named = {str(key): value for key, value in parameters.items()}
    elif isinstance(parameters, Tensor):
        named = {"parameter": parameters}
    else:
        named = {f"parameter {index}": value for index, value in enumerate(parameters)}
    for name, tensor in named.items():
        if not (isinstance(tensor, Tensor) and tensor.requires_grad and tensor.is_leaf):
            raise BadArgument(
                f"{name} is not a leaf tensor that requires a gradient.",
                "Pass the tensors that an optimizer would train.",
            )
    return named


def matching(parameters: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """For every parameter of the kernel its counterpart in the reference: the same tensor, name, or values.

    Parameters without a counterpart are left out.
    """
    found: dict[str, Tensor] = {}
    for name, tensor in parameters.items():
        same = [other for other in others.values() if other is tensor]
        equal = [other for other in others.values() if _same_values(tensor, other)]
        named = others.get(name)
        if same:
            found[name] = same[0]
        elif named is not None and named.shape == tensor.shape:
            found[name] = named
        elif len(equal) == 1:
            found[name] = equal[0]
    return found


def _same_values(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape:
        return False
    return bool(torch.equal(a.detach().double().cpu(), b.detach().double().cpu()))


@contextmanager
def held_in(tensors: Iterable[Tensor], dtype: torch.dtype | None) -> Iterator[None]:
    """Convert floating-point tensors in place meanwhile, as `Module.to` does, and restore their storages on exit.

    In place, because a kernel accesses its parameters itself: they are not arguments.
    """
    changed = [t for t in tensors if dtype and t.is_floating_point() and t.dtype != dtype]
    before = [tensor.data for tensor in changed]
    default = torch.get_default_dtype()
    try:
        for tensor in changed:
            tensor.data = tensor.data.to(dtype)
        if dtype in (torch.float32, torch.float64):
            torch.set_default_dtype(dtype)  # for the buffers that a loop makes of its own
        yield
    finally:
        torch.set_default_dtype(default)
        for tensor, data in zip(changed, before, strict=True):
            tensor.data = data


def cast(tensors: Tensors, dtype: torch.dtype | None) -> Tensors:
    """Floating-point tensors in `dtype`; others, and all if dtype is None, unchanged."""
    return tuple(t.to(dtype) if dtype and t.is_floating_point() else t for t in tensors)
