"""Beside torch.compile: the recorder's own frames stay out of compiled graphs, and compiled recurrences are refused.

By default torch.compile leaves nn.RNN, nn.LSTM and nn.GRU alone and they run as ever. A cell or a step module in a
Python loop is compiled, and so are the layers under `torch._dynamo.config.allow_rnn`: hooks on these would break up
the graph, and the training would no longer be the one that was to be watched.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, TypeVar

from rnndiag.errors import NotSupported

F = TypeVar("F", bound=Callable[..., Any])


def shielded(function: F) -> F:
    """The function, never looked into by torch.compile. Costs nothing where nobody has asked for torch.compile."""
    dynamo: Any = sys.modules.get("torch._dynamo")
    if dynamo is None:
        return function
    hidden: F = dynamo.disable(function)
    return hidden


def pass_over(*functions: Callable[..., Any]) -> None:
    """Have torch.compile run these functions as they are, and go on looking into what they call."""
    decorators: Any = sys.modules.get("torch._dynamo.decorators")
    if decorators is not None:
        for function in functions:
            decorators.skip(function)


def is_compiling() -> bool:
    """Whether torch.compile looks at the calls that are made here. To be asked from a function that is passed over."""
    if "torch._dynamo" not in sys.modules:
        return False
    eval_frame: Any = sys.modules.get("torch._C._dynamo.eval_frame")
    return eval_frame is not None and callable(eval_frame.get_eval_frame_callback())


def compiles_layers() -> bool:
    """Whether torch.compile has been told to compile nn.RNN, nn.LSTM and nn.GRU too."""
    dynamo: Any = sys.modules.get("torch._dynamo")
    return dynamo is not None and bool(getattr(dynamo.config, "allow_rnn", False))


def refuse_compiled(owner: str) -> NotSupported:
    """What to say of a recurrence inside of a compiled graph."""
    return NotSupported(
        f"The recurrence {owner or 'of the model'} runs inside of torch.compile, where its steps cannot be watched.",
        "Leave it out with torch.compiler.disable, or record without torch.compile.",
    )
