"""A remedy applied by a program: knob and value become a change of the program's settings."""

from __future__ import annotations

from typing import Any

from benchmarks.trial.program import Program
from rnndiag.health.diagnosis import Remedy
from rnndiag.health.diagnosis.step_rules import ADAM_RATE


def _window(program: Program, steps: float) -> dict[str, Any]:
    if program.carry:
        return {"T": int(steps)}
    if program.last_steps:
        return {"last_steps": None if steps >= program.length else int(steps)}
    return {"detach": None if steps >= program.length else int(steps)}


def apply(program: Program, remedy: Remedy) -> Program | None:
    """The repaired program; None where the remedy is no change that a program can make."""
    value = remedy.value
    changes: dict[str, Any] | None = {
        "batch_first": lambda: {"batch_first": value},
        "carry_state": lambda: {"reset": False},
        "read_last_valid_step": lambda: {"pad": "right"},
        "requires_grad": lambda: {"frozen": False},
        "add_to_optimizer": lambda: {"not_in_optimizer": False},
        "skip_nonfinite_batches": lambda: {"skip_nonfinite": True},
        "learning_rate": lambda: {"rate": float(value)},
        "learning_rate_schedule": lambda: {"rate_decay": 1.0},
        "gradient_clip_val": lambda: {"clip": value},
        "optimizer": lambda: {"optimizer": str(value), "rate": ADAM_RATE},
        "input_scale": lambda: {"input_scale": program.input_scale * float(value)},
        "standardise_inputs": lambda: {"input_scale": 1.0, "input_shift": 0.0},
        "standardise_targets": lambda: {"target_scale": 1.0, "target_shift": 0.0},
        "bias": lambda: {"bias": float(value)},
        "recurrent_weight": lambda: (
            {"gain": 1.0} if value == "orthogonal" else {"gain": None, "init": "good"}
        ),
        "forget_bias": lambda: {"forget_bias": float(value)},
        "update_bias": lambda: {"forget_bias": float(value)},
        "window": lambda: _window(program, float(value)),
        "weight_decay": lambda: {"weight_decay": float(value)},
    }.get(remedy.knob, lambda: None)()
    return None if changes is None else program.but(**changes)
