"""Restores a model to its earlier state: modes, buffers, gradients, plain attributes, random number generators."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

_TABLES = ("_parameters", "_buffers", "_modules")


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Restore the model and torch's random number generators on exit."""
    modules = list(model.modules())
    attributes = [dict(module.__dict__) for module in modules]
    tables = [{name: dict(module.__dict__[name]) for name in _TABLES} for module in modules]
    buffers = {buffer: buffer.detach().clone() for buffer in model.buffers()}
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    tensors = (*model.parameters(), *model.buffers())
    devices = {tensor.device for tensor in tensors if tensor.is_cuda}
    try:
        with torch.random.fork_rng(devices=devices), torch.enable_grad():
            yield
    finally:
        for module, saved, table in zip(modules, attributes, tables, strict=True):
            module.__dict__.clear()
            module.__dict__.update(saved)
            for name in _TABLES:
                module.__dict__[name].clear()
                module.__dict__[name].update(table[name])
        with torch.no_grad():
            for buffer, content in buffers.items():
                # A write in place would invalidate graphs that saved the buffer.
                if not torch.equal(buffer, content):
                    buffer.copy_(content)
        for parameter, gradient in gradients:
            parameter.grad = gradient
