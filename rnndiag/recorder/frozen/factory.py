"""Calls the user's factory, a function named as `package.module:function` or `file.py:function` that builds the
model."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from rnndiag.errors import BadArgument

Built = tuple[nn.Module, Callable[[nn.Module, Any], Any], Any]


def build(reference: str, folder: Path) -> Built:
    """(model, loss_fn, batch or None) from the factory `reference`; relative paths start at `folder`."""
    made = _function(reference, folder)()
    if isinstance(made, nn.Module):
        made = (made,)
    if not isinstance(made, tuple) or not made or not isinstance(made[0], nn.Module):
        raise BadArgument(
            f"{reference} returned {type(made).__name__}, not a model.",
            "Return (model, loss_fn, batch), where loss_fn(model, batch) is the scalar loss.",
        )
    model, loss_fn, batch = (*made, None, None)[:3]
    if loss_fn is None:
        if not callable(getattr(model, "training_step", None)):
            raise BadArgument(f"{reference} gives no loss_fn.", "Return (model, loss_fn, batch).")
        loss_fn = _training_step
    return model, loss_fn, batch


def _training_step(model: Any, batch: Any) -> Any:
    return model.training_step(batch, 0)


def _function(reference: str, folder: Path) -> Callable[[], Any]:
    place, _, name = reference.rpartition(":")
    if not place or not name.isidentifier():
        raise BadArgument(
            f"{reference!r} names no factory.",
            "Write package.module:function or path/to/file.py:function.",
        )
    module = _from_file(folder / place) if place.endswith(".py") else _from_name(place)
    function = getattr(module, name, None)
    if not callable(function):
        raise BadArgument(f"{place} has no function {name!r}.", "Check the name after the colon.")
    return function  # type: ignore[no-any-return]


def _from_name(place: str) -> Any:
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        return importlib.import_module(place)
    except ModuleNotFoundError as error:
        raise BadArgument(
            f"{place} cannot be imported: {error}.", "Run from the folder that holds it."
        ) from error


def _from_file(path: Path) -> Any:
    if not path.is_file():
        raise BadArgument(f"There is no file {path}.", "Name the factory's file as seen from here.")
    sys.path.insert(0, str(path.parent))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise BadArgument(f"{path} is not a Python file.", "Name a .py file.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module
