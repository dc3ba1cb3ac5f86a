"""The frozen gate: runs stored weights and a stored batch through today's code and compares with stored numbers.

The tolerance is the rounding of the dtype. Without seeds and training the result is reproducible: a larger difference
was caused by a change of the code.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rnndiag.errors import CannotJudge, RunUnreadable
from rnndiag.health.finding import UNTRUSTED, Change, Finding
from rnndiag.health.result import CheckResult
from rnndiag.health.torch_side import ask
from rnndiag.store.text import counted
from rnndiag.store.whole_files import read_regular, write_whole

EPSILONS = {"float64": 2.0**-52, "float32": 2.0**-23, "bfloat16": 2.0**-7, "float16": 2.0**-10}
FACTOR = 2000.0
"""Tolerance in units of the dtype's rounding: one rounding error per time step adds up over a sequence."""
MOST = 0.25
NUMBERS, SNAPSHOT = "numbers.json", "snapshot.json"
_MOST_BYTES = 256 << 20


def tolerance(dtype: str) -> float:
    """Relative difference that rounding may cause, by dtype."""
    if dtype not in EPSILONS:
        raise CannotJudge(
            f"The model computes in {dtype}.", "Use float64, float32, bfloat16 or float16."
        )
    return min(FACTOR * EPSILONS[dtype], MOST)


def factory_of(folder: Path, trust: bool = False) -> str:
    """The factory that snapshot.json names, as `file.py:function` or `package.module:function`.

    To check a snapshot is to run that code. A snapshot is data that others may have made, so a factory that lies
    inside of it is refused unless `trust` says otherwise.

    Raises:
        RunUnreadable: There is no snapshot.
        CannotJudge: The factory lies inside of the snapshot.
    """
    try:
        content = json.loads(read_regular(folder / SNAPSHOT, _MOST_BYTES))
        reference = str(content["factory"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise RunUnreadable(
            f"There is no snapshot that can be read in {folder}.",
            "Make one: rnndiag snapshot FACTORY -o DIR",
        ) from error
    place = reference.rpartition(":")[0]
    inside = [folder / place] if place.endswith(".py") else _module_files(place)
    if not trust and any(_lies_in(file, folder) for file in inside):
        raise CannotJudge(
            f"The factory {reference} lies inside of the snapshot {folder}, and is not run.",
            "A snapshot from somebody else would run their code. If it is yours: --trust.",
        )
    return reference


def _module_files(module: str) -> list[Path]:
    """Files of the module in the working directory, which is the first entry of the search path."""
    path = Path.cwd().joinpath(*module.split("."))
    return [path.with_suffix(".py"), path / "__init__.py"]


def _lies_in(file: Path, folder: Path) -> bool:
    """Whether a file, or the target of a link at its path, lies in a folder."""
    paths = (Path(os.path.abspath(file)), file.resolve())
    folders = (Path(os.path.abspath(folder)), folder.resolve())
    return any(path.is_relative_to(one) for path in paths for one in folders)


def judge_snapshot(folder: Path, baseline: str | None = None, trust: bool = False) -> CheckResult:
    """Run the snapshot and compare with its own numbers, or with those in the file `baseline`.

    Args:
        folder: The snapshot.
        baseline: Numbers to compare with in place of the snapshot's own.
        trust: Run a factory that lies inside of the snapshot.
    """
    factory_of(folder, trust)
    path = Path(baseline) if baseline else folder / NUMBERS
    old = read_numbers(path)
    new = ask("frozen.snapshot", ["measure", str(folder)])
    findings = compare(old, new, folder.name)
    return CheckResult(
        paths=(str(folder),),
        against=str(path),
        scope=f"one forward and backward pass in {new['dtype']}, {counted(len(new['layers']), 'layer run')}",
        findings=tuple(findings),
        versions={},
        accept=f"rnndiag baseline --snapshot {folder}" + (f" -o {path}" if baseline else ""),
        see="",
    )


def read_numbers(path: Path) -> dict[str, Any]:
    """Read stored numbers; raises CannotJudge if they cannot be used."""
    remedy = "Make them: rnndiag snapshot FACTORY -o DIR, or rnndiag baseline --snapshot DIR"
    try:
        content = json.loads(read_regular(path, _MOST_BYTES))
    except (OSError, ValueError, RecursionError) as error:
        raise CannotJudge(
            f"The numbers of the snapshot in {path} cannot be read.", remedy
        ) from error
    numbers = content.get("numbers") if isinstance(content, dict) else None
    sound = isinstance(numbers, dict) and all(isinstance(row, list) for row in numbers.values())
    if (
        not sound
        or not isinstance(content.get("layers"), dict)
        or content.get("dtype") not in EPSILONS
    ):
        raise CannotJudge(f"{path} does not hold the numbers of a snapshot.", remedy)
    return dict(content)


def store_numbers(path: Path, new: Mapping[str, Any]) -> list[str]:
    """Write the numbers; returns one line per change, with the old and the new value."""
    if new.get("inexact"):
        layer, reason = next(iter(new["inexact"].items()))
        raise CannotJudge(
            f"The proof of {layer} failed: {reason}.", "Such numbers are nothing to compare with."
        )
    try:
        old = read_numbers(path) if path.exists() else None
    except CannotJudge:
        old = None
    rows = [
        f"  {json.dumps(key)}: {json.dumps(row)}" for key, row in sorted(new["numbers"].items())
    ]
    head = {key: new[key] for key in ("layers", "dtype")}
    text = json.dumps(head, indent=1)[:-2] + ',\n "numbers": {\n' + ",\n".join(rows) + "\n }\n}\n"
    write_whole(path, text)
    if old is None or old["dtype"] != new["dtype"]:
        return []
    moved = [one for one in compare(old, new) if one.status != "pass"]
    return [f"{one.check} of {one.layer}: {one.message}" for one in moved] or ["nothing moved"]


def compare(old: Mapping[str, Any], new: Mapping[str, Any], name: str = "") -> list[Finding]:
    """One finding for the structure, and one per number and layer run."""
    if old["dtype"] != new["dtype"]:
        raise CannotJudge(
            f"The model computes in {new['dtype']}, the stored numbers are of {old['dtype']}.",
            "Make the snapshot again.",
        )
    found = [
        Finding(
            UNTRUSTED,
            "not_judged",
            layer,
            message=str(reason),
            remedy="The numbers are not to be trusted.",
        )
        for layer, reason in new.get("inexact", {}).items()
    ]
    found.append(_structure(old["layers"], new["layers"]))
    limit = tolerance(new["dtype"])
    for key in sorted(set(old["numbers"]) | set(new["numbers"])):
        quantity, _, layer = key.partition("@")
        before, after = old["numbers"].get(key), new["numbers"].get(key)
        if before is None or after is None:
            if layer in old["layers"] and layer in new["layers"]:
                where = "now" if after is None else "in the stored numbers"
                found.append(
                    Finding(quantity, "not_judged", layer, message=f"it is not there {where}")
                )
            continue
        other = layer not in old["layers"] or old["layers"][layer] != new["layers"][layer]
        if len(before) != len(after) and other:
            continue
        found.append(_moved(quantity, layer, before, after, limit, new["dtype"]))
    return [one.but(run=name) for one in found]


def _structure(old: Mapping[str, str], new: Mapping[str, str]) -> Finding:
    """The finding that compares the layer runs, their lengths and their starts."""
    if dict(old) == dict(new):
        return Finding(
            "layer_runs", "pass", message="the same layer runs, as long and from the same starts"
        )
    odd = [name for name in dict.fromkeys((*old, *new)) if old.get(name) != new.get(name)]
    first = odd[0]
    return Finding(
        "layer_runs",
        "fail",
        first,
        message=f"{first} was {old.get(first, 'absent')!r} and is {new.get(first, 'absent')!r}"
        + (f"; {len(odd) - 1} more layer runs differ" if len(odd) > 1 else ""),
        remedy="Look for a detach(), a state that is no longer passed on, or another initial state.",
        change="out of bounds",
        word="CHANGED",
    )


def _moved(
    quantity: str, layer: str, old: Sequence[Any], new: Sequence[Any], limit: float, dtype: str
) -> Finding:
    """The finding on one quantity of a snapshot: its largest change relative to its largest number."""
    moved = difference(old, new)
    failed = not moved <= limit
    word: Change = "shifted" if failed else ("identical" if moved == 0 else "within noise")
    return Finding(
        check=quantity,
        status="fail" if failed else "pass",
        layer=layer,
        value=moved,
        text_value=f"{moved:.2g}",
        allowed=f"at most {limit:.2g} ({dtype})",
        message=f"{quantity} moved by {moved:.2g} of its largest number",
        remedy="The same weights and batch give other numbers: look at what the code changed in the forward pass, "
        "the initial state, or the path of the gradient."
        if failed
        else "",
        change=word,
        word="CHANGED" if failed else "",
    )


def difference(old: Sequence[Any], new: Sequence[Any]) -> float:
    """Largest absolute difference over the largest number; inf if lengths or non-finite entries differ."""
    before, after = np.array(old, np.float64), np.array(new, np.float64)
    if before.shape != after.shape:
        return math.inf
    finite = np.isfinite(before) & np.isfinite(after)
    if not np.array_equal(before[~finite], after[~finite], equal_nan=True):
        return math.inf
    size = float(np.abs(before[finite]).max(initial=0.0))
    away = float(np.abs(before[finite] - after[finite]).max(initial=0.0))
    if away == 0:
        return 0.0
    return away / size if size > 0 else math.inf
