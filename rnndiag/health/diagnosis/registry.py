"""All diagnosis rules in order: the first that fires names the first cause.

The order is that of time and mechanism: structure, data, size of the optimizer's steps, conditions at step 0, cut
windows, and what came later. A late symptom (dead units, saturation, vanished credit) accompanies many causes: a
learning rate of 1 produces all of them, so a late symptom is named only if nothing earlier explains the state. A failed
proof (`not_trusted`) comes before all rules that rest on adjoints, and after those that do not.
"""

from __future__ import annotations

from rnndiag.health.diagnosis import data_rules as data
from rnndiag.health.diagnosis import later_rules as later
from rnndiag.health.diagnosis import need_rules as need
from rnndiag.health.diagnosis import start_rules as start
from rnndiag.health.diagnosis import step_rules as step
from rnndiag.health.diagnosis import structure_rules as structure
from rnndiag.health.diagnosis import window_rules as window
from rnndiag.health.diagnosis.rule import ALWAYS, BAD, UNLEARNED, Rule, Situation

_STUCK: frozenset[Situation] = frozenset({"stuck"})
_LOST: frozenset[Situation] = frozenset({"diverged"})

RULES = (
    Rule("time_and_batch_swapped", "structure", ALWAYS, structure.time_and_batch_swapped),
    Rule("state_not_carried", "structure", ALWAYS, structure.state_not_carried),
    Rule("reads_padding", "structure", ALWAYS, structure.reads_padding),
    Rule("frozen_or_unused", "structure", ALWAYS, structure.frozen_or_unused),
    Rule("nonfinite", "data", ALWAYS, structure.nonfinite_data),
    Rule("learning_rate_too_high", "data", ALWAYS, structure.nonfinite_by_rate, alone=True),
    Rule("exploding", "data", ALWAYS, structure.nonfinite_by_growth, alone=True),
    Rule("nonfinite", "data", ALWAYS, structure.nonfinite, alone=True),
    Rule("targets_out_of_scale", "step", UNLEARNED, data.targets_out_of_scale),
    Rule("learning_rate_too_low", "step", UNLEARNED, step.learning_rate_too_low),
    Rule("clipped_away", "step", UNLEARNED, step.clipped_away),
    Rule("learning_rate_too_high", "step", UNLEARNED, step.learning_rate_too_high),
    Rule("saturated", "start", UNLEARNED, start.saturated),
    Rule("dead_units", "start", UNLEARNED, start.dead_units),
    Rule("not_trusted", "structure", ALWAYS, structure.not_trusted),
    Rule("state_not_carried", "window", BAD, window.one_step_alone),
    Rule("exploding", "start", UNLEARNED, start.exploding),
    Rule("window_too_short", "start", UNLEARNED, window.sequence_too_short),
    Rule("window_too_short", "window", BAD, window.gradient_too_short),
    Rule("forget_gates_shut", "start", UNLEARNED, start.forget_gates_shut),
    Rule("window_too_short", "window", UNLEARNED, window.detached_every_step),
    Rule("window_too_short", "window", UNLEARNED, window.window_too_short),
    Rule("contracting_recurrence", "start", UNLEARNED, start.contracting_recurrence),
    Rule("needs_more_memory", "window", UNLEARNED, need.needs_more_memory),
    Rule("learning_rate_too_low", "later", UNLEARNED, step.rate_gone),
    Rule("weights_decayed", "later", UNLEARNED, later.weights_decayed),
    Rule("dead_units", "later", BAD, start.units_died),
    Rule("forget_gates_shut", "later", _STUCK, later.forgets_too_soon),
    Rule("contracting_recurrence", "later", _STUCK, later.contracts),
    Rule("loss_asks_for_no_more", "later", _STUCK, need.loss_asks_for_no_more, alone=True),
    Rule("exploding", "last resort", _LOST, structure.spikes, alone=True),
    Rule("learning_rate_too_high", "last resort", BAD, step.perhaps_too_high, alone=True),
    Rule("learning_rate_too_low", "last resort", BAD, step.perhaps_too_low, alone=True),
)
"""To add a cause, write a rule in one of the files of rules and add one line here."""
