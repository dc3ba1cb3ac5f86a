"""`python -m rnndiag.recorder.doctor`: the installed torch and Lightning packages, and whether recording works."""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

LIGHTNING = ("lightning", "pytorch_lightning")
OLDEST = {"torch": (2, 6), "lightning": (2, 4), "pytorch_lightning": (2, 4)}


def examine() -> list[dict[str, str]]:
    """One row per check: name, state (ok, fault, absent), what was found, what to do."""
    rows = [_torch()]
    if rows[0]["state"] == "ok":
        rows += [
            _cuda(),
            *_lightning(),
            _guarded("recording", _recording),
            _guarded("callback", _callback),
        ]
    return rows


def _row(name: str, state: str, found: str, remedy: str = "") -> dict[str, str]:
    return {"name": name, "state": state, "found": found, "remedy": remedy}


def _guarded(name: str, examination: Callable[[], dict[str, str]]) -> dict[str, str]:
    try:
        return examination()
    except Exception as error:  # noqa: BLE001 - whatever is wrong here is what a person wants to know
        text = " ".join(str(error).split())[:300]
        return _row(
            name, "fault", f"{type(error).__name__}: {text}", "Report this with the versions above."
        )


def _version(package: str) -> str:
    """The installed version, read without importing the package; empty if it is not installed."""
    with suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(package)
    return ""


def _new_enough(package: str, version: str) -> bool:
    numbers = tuple(int(part) for part in version.split("+")[0].split(".")[:2] if part.isdigit())
    return numbers >= OLDEST[package]


def _torch() -> dict[str, str]:
    version = _version("torch")
    if not version:
        return _row(
            "torch",
            "absent",
            "not installed",
            "Install rnndiag[train] to record; reading runs needs no torch.",
        )
    if not _new_enough("torch", version):
        return _row(
            "torch",
            "fault",
            version,
            "Upgrade to torch 2.6 or later: older ones may run code while they read a checkpoint (CVE-2025-32434).",
        )
    return _guarded("torch", lambda: _row("torch", "ok", __import__("torch").__version__))


def _cuda() -> dict[str, str]:
    import torch

    build = torch.version.cuda or getattr(torch.version, "hip", None)
    if not build:
        return _row(
            "GPU",
            "absent",
            "this torch is a CPU build",
            "Fine without a GPU; else install a CUDA build.",
        )
    if not torch.cuda.is_available():
        return _row(
            "GPU",
            "absent",
            f"built for {build}, no device is visible",
            "Check the driver and CUDA_VISIBLE_DEVICES.",
        )
    return _row("GPU", "ok", f"built for {build}, {torch.cuda.get_device_name(0)}")


def _lightning() -> list[dict[str, str]]:
    rows = []
    for package in LIGHTNING:
        version = _version(package)
        if version and not _new_enough(package, version):
            rows.append(_row(package, "fault", version, "Upgrade to 2.4 or later."))
        elif version:
            rows.append(_row(package, "ok", version))
    none = "Install lightning for the callback; rnndiag.probe works without it."
    return rows or [
        _row("lightning", "absent", "neither lightning nor pytorch_lightning is installed", none)
    ]


def _recording() -> dict[str, str]:
    """Record an LSTM in one backward pass, with its proof."""
    import torch

    from rnndiag.recorder.probe import probe

    device = "cuda" if torch.cuda.is_available() else "cpu"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        began = time.perf_counter()
        model = torch.nn.LSTM(3, 8, batch_first=True).to(device)
        with probe(model) as seen:
            model(torch.randn(2, 10, 3, device=device))[0].square().mean().backward()
        proof = seen.proofs[0]
    seconds = time.perf_counter() - began
    if proof.verdict != "exact":
        return _row(
            "recording",
            "fault",
            f"the proof says {proof.verdict}: {'; '.join(proof.reasons)}",
            "Report this.",
        )
    return _row(
        "recording", "ok", f"an LSTM on {device} is recorded and proved in {1000 * seconds:.0f} ms"
    )


def _callback() -> dict[str, str]:
    """Build the callback, and check that it is a callback of every installed Lightning package."""
    installed = [name for name in LIGHTNING if _version(name)]
    if not installed:
        return _row("callback", "absent", "no Lightning is installed")
    modules = ["lightning.pytorch" if name == "lightning" else name for name in installed]
    bases = [importlib.import_module(name).Callback for name in modules]
    from rnndiag.recorder.callback import GradientDiagnostics

    callback = GradientDiagnostics()
    strangers = [
        name for name, base in zip(installed, bases, strict=True) if not isinstance(callback, base)
    ]
    if strangers:
        return _row(
            "callback", "fault", f"it is no Callback of {', '.join(strangers)}", "Report this."
        )
    return _row("callback", "ok", f"it is a Callback of {' and of '.join(installed)}")


def main(argv: list[str] | None = None) -> int:
    """Write the rows as JSON to `--answer FILE`."""
    parser = argparse.ArgumentParser(prog="python -m rnndiag.recorder.doctor")
    parser.add_argument("--answer", type=Path, required=True)
    args = parser.parse_args(argv)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        content: dict[str, Any] = {"rows": examine()}
    args.answer.write_text(json.dumps(content), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
