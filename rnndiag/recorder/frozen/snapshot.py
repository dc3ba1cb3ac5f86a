"""`python -m rnndiag.recorder.frozen.snapshot`: the torch side of `rnndiag snapshot` and `rnndiag check --snapshot`.

A snapshot is a folder: snapshot.json (factory, structure of the batch), state.npz, batch.npz, and numbers.json, which
the numpy side writes and compares.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rnndiag.errors import BadArgument, CannotJudge, RnndiagError, RunUnreadable
from rnndiag.recorder.frozen.arrays import Arrays, decode, encode, load, save
from rnndiag.recorder.frozen.factory import build
from rnndiag.recorder.frozen.numbers import measure
from rnndiag.recorder.need.output_loss import LossFn
from rnndiag.store.whole_files import write_whole

FORMAT, VERSION = "rnndiag snapshot", 1


def freeze(reference: str, target: Path, checkpoint: Path | None) -> None:
    """Store the factory's name, the weights (of the model or the checkpoint) and the batch."""
    model, _, batch = build(reference, Path.cwd())
    if batch is None:
        raise BadArgument(f"{reference} gives no batch.", "Return (model, loss_fn, batch).")
    if checkpoint is not None:
        _load_checkpoint(model, checkpoint)
    target.mkdir(parents=True, exist_ok=True)
    arrays: Arrays = {}
    structure = encode(batch, arrays)
    save(target / "batch.npz", arrays)
    state: Arrays = {}
    names = encode(dict(model.state_dict()), state)
    save(target / "state.npz", state)
    place, _, name = reference.rpartition(":")
    if place.endswith(".py"):
        reference = f"{Path(os.path.relpath(Path.cwd() / place, target)).as_posix()}:{name}"
    content = {
        "format": FORMAT,
        "version": VERSION,
        "factory": reference,
        "batch": structure,
        "state": names,
        "torch": str(torch.__version__),
    }
    write_whole(target / "snapshot.json", json.dumps(content, indent=1) + "\n")


def _load_checkpoint(model: nn.Module, path: Path) -> None:
    if tuple(int(part) for part in str(torch.__version__).split(".")[:2]) < (2, 6):
        raise BadArgument(
            f"torch {torch.__version__} may run code while it reads a checkpoint (CVE-2025-32434).",
            "Use torch 2.6 or later, or load the weights in the factory.",
        )
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise BadArgument(
            f"The checkpoint {path} cannot be read: {type(error).__name__}.",
            "Give a file of tensors that torch.load(weights_only=True) reads.",
        ) from error
    state = content.get("state_dict", content) if isinstance(content, dict) else content
    _fill(model, state, str(path))


def _fill(model: nn.Module, state: Any, source: str) -> None:
    try:
        model.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError) as error:
        first = str(error).strip().splitlines()
        raise CannotJudge(
            f"The weights of {source} do not fit the factory's model: {' '.join(first[:2])}",
            "If the model was changed on purpose, make the snapshot again.",
        ) from error


def restored(source: Path) -> tuple[nn.Module, LossFn, Any]:
    """The model of a snapshot with its stored weights, its loss function and its batch."""
    path = source / "snapshot.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        known = content["format"] == FORMAT and content["version"] == VERSION
        reference, structure, names = str(content["factory"]), content["batch"], content["state"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunUnreadable(
            f"There is no snapshot that can be read in {source}.",
            "Make one: rnndiag snapshot FACTORY -o DIR",
        ) from error
    if not known:
        raise RunUnreadable(f"{path} was made by another version.", "Make the snapshot again.")
    in_file = reference.rpartition(":")[0].endswith(".py")
    model, loss_fn, _ = build(reference, source if in_file else Path.cwd())
    _fill(model, decode(names, load(source / "state.npz")), str(source))
    return model, loss_fn, decode(structure, load(source / "batch.npz"))


def main(argv: list[str] | None = None) -> int:
    """`freeze FACTORY DIR [--checkpoint F]` or `measure DIR`; the answer goes to `--answer FILE` as JSON."""
    parser = argparse.ArgumentParser(prog="python -m rnndiag.recorder.frozen.snapshot")
    parser.add_argument("action", choices=("freeze", "measure"))
    parser.add_argument("names", nargs="+")
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--answer", type=Path, required=True)
    args = parser.parse_args(argv)

    def measured() -> dict[str, Any]:
        if args.action == "freeze":
            freeze(args.names[0], Path(args.names[1]), args.checkpoint)
        return measure(*restored(Path(args.names[-1])))

    return write_answer(args.answer, measured)


def write_answer(path: Path, work: Callable[[], dict[str, Any]]) -> int:
    """Write what the work gives, or the error that ended it, as JSON; the exit code."""
    answer: dict[str, Any]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            answer = work()
    except RnndiagError as error:
        answer = {"error": type(error).__name__, "what": error.what, "remedy": error.remedy}
    path.write_text(json.dumps(answer), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
