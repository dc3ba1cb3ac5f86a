"""Jordan's net: only the output of the step before comes back, not the hidden state."""

from __future__ import annotations

from torch import Tensor, nn

from lightning_modules.recurrence import Recurrence, Stepped
from lightning_modules.recurrence.stepped import StepModule
from lightning_modules.wirings.wiring import WIRINGS, Plan, Wiring


class OutputToHidden(StepModule):
    """h_t = tanh(W_ih x_t + W_oh y_{t-1}), o_t = V h_t; y is o, or softmax(o) where o are logits.

    The state is o, the prediction itself: all that the net can remember is what it said.
    """

    parts = ("o",)

    def __init__(self, inputs: int, hidden: int, outputs: int, classifies: bool) -> None:
        super().__init__()
        self.sizes = (outputs,)
        self.input = nn.Linear(inputs, hidden)
        self.feedback = nn.Linear(outputs, hidden, bias=False)
        self.output = nn.Linear(hidden, outputs)
        self.classifies = classifies

    def forward(self, inputs: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The new (o,)."""
        said = state[0].softmax(-1) if self.classifies else state[0]
        return (self.output((self.input(inputs) + self.feedback(said)).tanh()),)


def build(plan: Plan) -> Recurrence:
    """Its outputs are the predictions."""
    step = OutputToHidden(plan.inputs, plan.hidden, plan.outputs, plan.classifies)
    return Stepped(step, is_readout=True)


WIRINGS.add("output_to_hidden", Wiring("Jordan: output to hidden", build, own_step=True))
