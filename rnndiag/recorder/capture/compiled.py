"""Support beside torch.compile: excludes the recorder from compiled graphs, and refuses compiled recurrences.

By default torch.compile runs nn.RNN, nn.LSTM and nn.GRU uncompiled. A cell or a step module in a Python loop is
compiled, and so are the layers under `torch._dynamo.config.allow_rnn`: hooks on these would break up the graph and
change the training that is being observed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, TypeVar

from rnndiag.errors import NotSupported

F = TypeVar("F", bound=Callable[..., Any])


def shielded(function: F) -> F:
    """The function, excluded from torch.compile. Free if torch.compile is not in use."""
    dynamo: Any = sys.modules.get("torch._dynamo")
    if dynamo is None:
        return function
    hidden: F = dynamo.disable(function)
    return hidden


def pass_over(*functions: Callable[..., Any]) -> None:
    """Make torch.compile run these functions uncompiled, but compile what they call."""
    decorators: Any = sys.modules.get("torch._dynamo.decorators")
    if decorators is not None:
        for function in functions:
            decorators.skip(function)


def is_compiling() -> bool:
    """Whether torch.compile is tracing this call. Call it from a function given to `pass_over`."""
    if "torch._dynamo" not in sys.modules:
        return False
    eval_frame: Any = sys.modules.get("torch._C._dynamo.eval_frame")
    return eval_frame is not None and callable(eval_frame.get_eval_frame_callback())


def compiles_layers() -> bool:
    """Whether torch.compile is configured to compile nn.RNN, nn.LSTM and nn.GRU too."""
    dynamo: Any = sys.modules.get("torch._dynamo")
    return dynamo is not None and bool(getattr(dynamo.config, "allow_rnn", False))


def refuse_compiled(owner: str) -> NotSupported:
    """The error for a recurrence inside of a compiled graph."""
    return NotSupported(
        f"The recurrence {owner or 'of the model'} runs inside of torch.compile, where its steps cannot be watched.",
        "Leave it out with torch.compiler.disable, or record without torch.compile.",
    )
