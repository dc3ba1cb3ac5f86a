"""What is planted, what should be named first, and in which programs it makes sense."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from benchmarks.trial.program import Program
from benchmarks.trial.tasks import Task

GATED = ("lstm", "gru")
TANH, RELU = ("tanh",), ("relu",)
ALL = (*GATED, *TANH, *RELU)


def _any_task(task: Task) -> bool:
    return True


def _with_memory(task: Task) -> bool:
    return task.needs >= 3


def _far(task: Task) -> bool:
    return task.needs >= 10


def _class_at_end(task: Task) -> bool:
    return task.at_end


def _values(task: Task) -> bool:
    return not task.classes


def _every_step(task: Task) -> bool:
    return not task.at_end


def _cut_window(task: Task) -> bool:
    return task.needs >= 5 and not task.at_end


@dataclass(frozen=True)
class Fault:
    """One planted fault. `causes` are the right first answers where it hurts."""

    name: str
    causes: tuple[str, ...]
    changes: Mapping[str, Any]
    cells: tuple[str, ...] = ALL
    fits: Callable[[Task], bool] = _any_task
    mild: bool = False
    more: Callable[[Program], Mapping[str, Any]] | None = field(default=None)
    """Changes that depend on the program."""

    def plant(self, program: Program) -> Program:
        """The program with the fault."""
        found = program.but(**self.changes)
        return found if self.more is None else found.but(**self.more(found))


def _short_sequence(program: Program) -> Mapping[str, Any]:
    return {"last_steps": max(3, program.of.needs // 2), "needs": program.of.needs}


def _most_of_the_gap(program: Program) -> Mapping[str, Any]:
    return {"detach": max(2, round(0.7 * program.of.needs))}


def _half_of_the_gap(program: Program) -> Mapping[str, Any]:
    return {"detach": max(2, program.of.needs // 5)}


def _times(factor: float) -> Callable[[Program], Mapping[str, Any]]:
    return lambda program: {"rate": factor * program.of.rate}


_SGD = {"optimizer": "momentum", "rate": 0.05}

FAULTS = {
    fault.name: fault
    for fault in (
        Fault("forget-shut", ("forget_gates_shut",), {"forget_bias": -5.0}, GATED, _far),
        Fault("torch-default", ("forget_gates_shut",), {"init": "torch"}, GATED, _far),
        Fault("detach", ("window_too_short",), {}, ALL, _far, more=_half_of_the_gap),
        Fault("chunks", ("window_too_short",), {"carry": True, "T": 3}, ALL, _cut_window),
        Fault("short-sequence", ("window_too_short",), {}, ALL, _far, more=_short_sequence),
        Fault("rate-high", ("learning_rate_too_high",), {"rate": 1.0}),
        Fault(
            "rate-high-sgd", ("learning_rate_too_high",), {"optimizer": "momentum", "rate": 20.0}
        ),
        Fault("rate-low", ("learning_rate_too_low",), {"rate": 1e-6}),
        Fault("rate-low-sgd", ("learning_rate_too_low",), {"optimizer": "sgd", "rate": 1e-4}),
        Fault("rate-decays", ("learning_rate_too_low",), {"rate_decay": 0.8}),
        Fault("exploding-relu", ("exploding",), {"gain": 2.0}, RELU),
        Fault("exploding-tanh", ("exploding",), {"gain": 2.5}, TANH),
        Fault("clipped", ("clipped_away",), {**_SGD, "clip": 1e-3}),
        Fault("clipped-adam", (), {"clip": 1e-3}),
        Fault("saturated", ("saturated",), {"input_scale": 50.0}, (*GATED, *TANH)),
        Fault("raw-units", ("saturated",), {"input_scale": 300.0}, (*GATED, *TANH)),
        Fault("off-centre", ("saturated",), {"input_shift": 300.0}, (*GATED, *TANH)),
        Fault("raw-targets", ("targets_out_of_scale",), {"target_scale": 300.0}, ALL, _values),
        Fault("far-targets", ("targets_out_of_scale",), {"target_shift": 500.0}, ALL, _values),
        Fault("dead", ("dead_units",), {"bias": -4.0}, RELU),
        Fault(
            "contracting", ("contracting_recurrence",), {"gain": 0.2}, (*TANH, *RELU), _with_memory
        ),
        Fault("swapped", ("time_and_batch_swapped",), {"batch_first": False}, ALL, _with_memory),
        Fault(
            "not-carried", ("state_not_carried",), {"loop": True, "reset": True}, ALL, _with_memory
        ),
        Fault("padding", ("reads_padding",), {"pad": "read"}, ALL, _class_at_end),
        Fault("frozen", ("frozen_or_unused",), {"frozen": True}, ALL, _with_memory),
        Fault(
            "not-in-optimizer", ("frozen_or_unused",), {"not_in_optimizer": True}, ALL, _with_memory
        ),
        Fault("nan", ("nonfinite",), {"nan_at": 40}),
        Fault("decayed", ("weights_decayed",), {"weight_decay": 0.3}),
        Fault("asks-no-more", (), {"first_only": True}, ALL, _every_step),
        Fault("shuffled", (), {"shuffled": True}),
        # mild ones
        Fault("rate-3x", ("learning_rate_too_high",), {}, mild=True, more=_times(3)),
        Fault("rate-10x", ("learning_rate_too_high",), {}, mild=True, more=_times(10)),
        Fault("rate-tenth", ("learning_rate_too_low",), {}, mild=True, more=_times(0.1)),
        Fault("window-70", ("window_too_short",), {}, ALL, _far, True, _most_of_the_gap),
        Fault("clip-mild", ("clipped_away",), {**_SGD, "clip": 0.02}, mild=True),
        Fault("gain-1.4", ("exploding",), {"gain": 1.4}, (*TANH, *RELU), mild=True),
        Fault("decay-mild", ("weights_decayed",), {"weight_decay": 0.03}, mild=True),
    )
}
