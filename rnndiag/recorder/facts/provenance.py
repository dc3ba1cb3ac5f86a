"""The provenance of a run: versions, machine, code, model, settings and relevant Trainer options."""

from __future__ import annotations

import os
import platform
import socket
import subprocess
import sys
from collections.abc import Iterable
from importlib import metadata
from typing import Any

import torch

from rnndiag import __version__
from rnndiag.engine.layer_run import LayerRun
from rnndiag.recorder.facts.training_loop import TrainingLoop

_PACKAGES = ("rnndiag", "torch", "lightning", "pytorch_lightning", "numpy")


def provenance(
    loop: TrainingLoop, model: dict[str, Any], settings: dict[str, Any], training: dict[str, Any]
) -> dict[str, Any]:
    """All of it as JSON; the writer removes secrets. training: the result of `training_setup`."""
    return {
        "versions": versions(),
        "host": socket.gethostname(),
        "os": platform.platform(),
        "git": git_state(),
        "model": model,
        "config": settings,
        "trainer": loop.as_json(),
        "training": training,
        "seed": os.environ.get("PL_GLOBAL_SEED"),
        "command": list(sys.argv),
    }


def versions() -> dict[str, str]:
    """Versions of Python, CUDA and the relevant packages."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        if (version := _version(package)) is not None:
            found[package] = version
    found.setdefault("rnndiag", __version__)
    if torch.version.cuda:
        found["cuda"] = torch.version.cuda
    return found


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def git_state() -> dict[str, Any]:
    """The commit, and whether files were changed since; empty outside of a repository."""
    commit = _git("rev-parse", "HEAD")
    if not commit:
        return {}
    changed = _git("status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "dirty": bool(changed)}


def _git(*words: str) -> str:
    try:
        found = subprocess.run(
            ["git", *words], capture_output=True, text=True, timeout=2, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return found.stdout.strip() if found.returncode == 0 else ""


def model_facts(module: Any, runs: Iterable[LayerRun]) -> dict[str, Any]:
    """The recurrent layers at the first recording, and the number of parameters."""
    layers = {
        run.name: {
            "cell": run.cell.name,
            "hidden": run.sizes[0],
            "state": run.S,
            "inputs": int(run.inputs.shape[-1]),
            "T": run.T,
            "B": run.B,
            "direction": "reverse" if run.reverse else "forward",
            "dtype": str(run.dtype).removeprefix("torch."),
        }
        for run in runs
    }
    sizes = [parameter.numel() for parameter in module.parameters() if not _is_lazy(parameter)]
    return {"name": type(module).__qualname__, "layers": layers, "parameters": sum(sizes)}


def _is_lazy(parameter: Any) -> bool:
    return isinstance(parameter, torch.nn.parameter.UninitializedParameter)
