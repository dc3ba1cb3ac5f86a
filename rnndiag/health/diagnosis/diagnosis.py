"""The result of a diagnosis: a state, one sentence, and ranked causes with machine-readable remedies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

State = Literal["broken", "not_trusted", "diverged", "stuck", "learning", "learned", "cannot_tell"]
STATES: tuple[State, ...] = get_args(State)


def state_words(state: State) -> str:
    """The state as a person says it."""
    return "not to be trusted" if state == "not_trusted" else state.replace("_", " ")


Confidence = Literal["high", "medium", "low"]

CAUSES: Mapping[str, str] = {
    "not_trusted": "the proofs of the recordings failed",
    "time_and_batch_swapped": "the layer walks along the batch",
    "state_not_carried": "every call starts from a zero state",
    "reads_padding": "the loss reads steps beyond the sequences",
    "frozen_or_unused": "the recurrent weights do not change",
    "nonfinite": "a loss or gradient that is not finite",
    "targets_out_of_scale": "targets far from what the model answers",
    "learning_rate_too_low": "steps too small to learn",
    "clipped_away": "clipping leaves next to nothing of each step",
    "learning_rate_too_high": "steps that throw the weights about",
    "saturated": "gates or units that stand at the end of their range",
    "dead_units": "relu units that are zero everywhere",
    "exploding": "a gradient that grows step by step back",
    "window_too_short": "the gradient is cut, or the sequence ends, before what the task needs",
    "forget_gates_shut": "the state is forgotten too soon",
    "contracting_recurrence": "the recurrent weights shrink the gradient step by step",
    "weights_decayed": "weight decay outweighs the gradient",
    "needs_more_memory": "inputs further back than the gradient reaches would lower the loss",
    "loss_asks_for_no_more": "the loss is low without any longer memory",
    "cannot_tell": "nothing measured explains it",
}
"""Every cause and its meaning in a few words; the names are stable."""


@dataclass(frozen=True)
class Evidence:
    """One number in a cause's sentence: its name, its value, and the training step of its recording."""

    what: str
    value: float
    step: int


@dataclass(frozen=True)
class Remedy:
    """A proposed change of one setting: `knob` is its name (see `KNOBS`), `value` its new value, `sentence` the advice.

    Knob and value are meant for programs that apply the change.
    """

    knob: str
    value: Any
    sentence: str


KNOBS: Mapping[str, str] = {
    "batch_first": "the argument of the recurrent module; True",
    "carry_state": "pass the state that a call returns into the next call; True",
    "read_last_valid_step": "let the loss read each sequence's last real step, or mask it; True",
    "requires_grad": "of the recurrent parameters; True",
    "add_to_optimizer": "give the recurrent parameters to the optimizer; True",
    "use_in_loss": "let the loss depend on the layer's output; True",
    "skip_nonfinite_batches": "drop batches that hold nan or inf; True",
    "learning_rate": "of the optimizer; a number",
    "learning_rate_schedule": '"constant": no schedule, or one that is stretched over the fit',
    "optimizer": 'the optimizer\'s name in lower case, such as "adam", to use with a learning rate of 0.003',
    "gradient_clip_val": "the norm at which gradients are clipped, as of Lightning's Trainer; a number",
    "weight_decay": "of the optimizer; a number",
    "input_scale": "multiply the layer's inputs by this number",
    "standardise_inputs": "subtract the mean of the layer's inputs, and divide by their standard deviation; True",
    "standardise_targets": "subtract the mean of the targets, and divide by their standard deviation; True",
    "bias": "set all biases of the layer to this number at the start",
    "recurrent_weight": 'how to start W_hh: "orthogonal" or "identity" (with zero biases)',
    "forget_bias": "of an LSTM at the start: bias_hh in the rows of f, with bias_ih there at 0; a number",
    "update_bias": "of a GRU at the start: bias_hh in the rows of z, with bias_ih there at 0; a number",
    "window": "steps that a gradient is carried through: of a chunk, or of the sequence (its length: no detach)",
}
"""Every knob that a remedy may name, and the meaning of its value."""


@dataclass(frozen=True)
class Cause:
    """A reason for the model's state.

    `sentence` states the observation with the steps of its numbers, and its meaning; `evidence` holds those numbers.
    `layer` is empty if the cause concerns the whole model.
    """

    name: str
    layer: str
    sentence: str
    evidence: tuple[Evidence, ...]
    remedy: Remedy | None
    confidence: Confidence


@dataclass(frozen=True)
class Diagnosis:
    """The diagnosis of a run.

    Attributes:
        state: broken, not_trusted, diverged, stuck, learning, learned or cannot_tell.
        headline: One sentence for the end screen, the page and the gate.
        causes: The primary cause first, then those that accompany it. Empty if nothing is wrong.
        at_rest: Whether the loss came to rest above zero, which counts as `learned`.
        steps: Training steps of the recordings that the state rests on.
    """

    state: State
    headline: str
    causes: tuple[Cause, ...] = ()
    at_rest: bool = False
    steps: tuple[int, ...] = ()

    @property
    def healthy(self) -> bool:
        """Whether the model learns or has learned, and no cause was found."""
        return self.state in ("learning", "learned") and not self.causes

    def as_json(self) -> dict[str, Any]:
        """The diagnosis as plain JSON types."""
        return asdict(self)
