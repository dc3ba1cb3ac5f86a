"""All backward passes since the recorder was armed, each with its layer runs."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from rnndiag.engine.adjoints import Adjoints
from rnndiag.engine.layer_run import LayerRun
from rnndiag.engine.truncation.estimators.estimator import Estimator
from rnndiag.recorder.capture.backward_pass import Tasks
from rnndiag.recorder.capture.call import Call
from rnndiag.recorder.capture.chains import Chain, chains
from rnndiag.recorder.capture.gathered import gathered
from rnndiag.recorder.capture.layer_runs import Pass, layer_runs, run_name
from rnndiag.recorder.capture.loops import Loops
from rnndiag.recorder.capture.resets import told, unless_scattered
from rnndiag.recorder.capture.sample_mixing import Samples
from rnndiag.recorder.capture.weights import Weight

_GRADIENT_OF_GRADIENT = (
    "a gradient of a gradient (create_graph=True) flows through the layer, "
    "and the adjoints do not hold it"
)
_CUT = (
    "it is called for one step at a time, and its state is changed in between by more than a reset of whole sequences: "
    "it falls into {} runs, most of which reach back one step only"
)
_PRECISION = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""Coarsest first."""


@dataclass(frozen=True)
class BackwardPass:
    """The result of one backward pass."""

    layer_runs: tuple[LayerRun, ...]
    """Ordered by first call, lowest layer first."""
    adjoints: Mapping[str, Adjoints] = field(default_factory=dict)
    """Layer run -> its adjoints, if they had to be computed for the lower layers."""
    dtype: torch.dtype = torch.float32
    """The coarsest precision among the calls."""
    missed: Mapping[str, str] = field(default_factory=dict)
    """Module -> why its calls could not be replayed; recurrent parameter -> why its gradient is unexplained."""
    unseen: Mapping[str, str] = field(default_factory=dict)
    """What looks like a recurrence but could not be followed -> why."""
    scale: float = 1.0
    """The loss scale that has been divided out."""
    resets: Mapping[str, str] = field(default_factory=dict)
    """Layer run -> a sentence on its sequences, if states were reset within sequences of the batch."""

    loops: Loops = field(default_factory=Loops)
    """The loops measured on the graph, and those that could not be."""
    samples: Samples = field(default_factory=Samples)
    """Whether the loss is a sum over the samples of the batch."""
    estimators: Mapping[str, Estimator] = field(default_factory=dict)
    """Layer run -> the estimator that it was trained with, if not the full gradient."""

    @property
    def cut(self) -> dict[str, str]:
        """Recurrence called step by step whose state is changed between calls, so that each call is a run -> a
        sentence.

        The numbers of such runs are right, but most of them cover one step only.
        """
        starts: dict[str, list[LayerRun]] = defaultdict(list)
        for run in self.layer_runs:
            if not run.open:
                starts[run.name.partition("#")[0]].append(run)
        return {
            name: _CUT.format(len(runs))
            for name, runs in starts.items()
            if len(runs) > 2
            and 2 * sum(run.T == 1 for run in runs) > len(runs)
            and all(run.tie == "given" or run.tie.startswith("run:") for run in runs[1:])
        }


@dataclass
class Names:
    """Numbers the recurrences of each module (#2, #3) and the backward passes through each of them (@2)."""

    _count: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    _number: dict[int, int] = field(default_factory=dict)
    _passes: dict[int, int] = field(default_factory=lambda: defaultdict(int))
    _ends: dict[int, tuple[Call, str]] = field(default_factory=dict)

    def suffix(self, chain: Chain) -> str:
        """The suffix of the chain's name in its next pass."""
        first = chain[0]
        if first.number not in self._number:
            self._count[first.owner] += 1
            self._number[first.number] = self._count[first.owner]
        number = self._number[first.number]
        self._passes[first.number] += 1
        passes = self._passes[first.number]
        suffix = (f"#{number}" if number > 1 else "") + (f"@{passes}" if passes > 1 else "")
        for call in chain:
            self._ends[call.number] = (call, suffix)
        return suffix

    def of_end(self, number: int, index: int) -> str | None:
        """The name of the layer run that ended with that call, at layer * directions + direction; None if there is
        none."""
        if number not in self._ends:
            return None
        call, suffix = self._ends[number]
        layer, direction = divmod(index, call.plan.directions)
        return run_name(call.owner, layer, direction, call.plan.one_step, suffix)


def backward_passes(
    tasks: Tasks,
    calls: Iterable[Call],
    weights: Iterable[Weight],
    names: Names,
    refused: Mapping[str, str],
    loops: Mapping[int, Loops],
    samples: Mapping[int, Samples],
) -> tuple[BackwardPass, ...]:
    """The passes in order, except those that no recorded call took part in."""
    calls, weights = list(calls), list(weights)
    found = []
    for task, scale in tasks.scales.items():
        taking_part = [call for call in calls if task in call.output_gradients]
        gradients = _by_name(weights, task, taking_part)
        own = loops.get(task, Loops())
        if taking_part or gradients or own.tells:
            of_pass = samples.get(task, Samples())
            shared = Pass(task, scale, gradients, names.of_end, of_pass.independent)
            one = _one_pass(shared, taking_part, weights, names, refused, own)
            found.append(replace(one, samples=of_pass))
        if task in tasks.double:
            for call in taking_part:  # a later pass through these is no plain backward pass
                if _GRADIENT_OF_GRADIENT not in call.notes:
                    call.notes.append(_GRADIENT_OF_GRADIENT)
    return tuple(found)


def _by_name(weights: list[Weight], task: int, calls: Iterable[Call]) -> dict[str, Tensor]:
    """Parameter name -> gradient G, added up over the calls for a parametrized weight, which is recomputed in each
    call.

    If `functional_call` substitutes a tensor made from a parameter, the gradient of the parameter itself is that of the
    tensor once more, by the chain rule, and counts only if no call used the tensor.
    """
    used = {id(weight) for call in calls for own in call.weights for weight, _ in own.values()}
    by_calls = {weight.name for weight in weights if id(weight) in used}
    found: dict[str, Tensor] = {}
    for weight in weights:
        gradient = weight.gradients.get(task)
        if gradient is None or (weight.name in by_calls and id(weight) not in used):
            continue
        known = found.get(weight.name)
        found[weight.name] = gradient if known is None else known + gradient
    return found


def _one_pass(
    shared: Pass,
    calls: list[Call],
    weights: list[Weight],
    names: Names,
    refused: Mapping[str, str],
    loops: Loops,
) -> BackwardPass:
    seen = _without_lone_guesses(calls)
    refused = {**refused, **{call.owner: call.refusal for call in seen if call.refusal}}
    refused = {**_no_steps(seen), **refused}
    for owner in loops.owners:
        refused.pop(owner, None)
    found_chains = chains([call for call in seen if not call.refusal and call.owner not in refused])
    recurrences = [part for chain in found_chains for part in unless_scattered(chain)]
    suffixes = [names.suffix(chain) for chain in recurrences]
    runs: list[LayerRun] = []
    made: dict[str, Adjoints] = {}
    reset: dict[str, str] = {}
    for chain, suffix in zip(recurrences, suffixes, strict=True):
        found = list(layer_runs(chain, suffix, shared))
        if (loop := loops.calls.get(chain[0].number)) is not None:
            found = [(replace(run, open=loops.reasons[loop], loop=loop), adj) for run, adj in found]
        made |= {run.name: adj for run, adj in found if adj is not None}
        by_index = {run.name: run for run, _ in found}
        runs += [by_index[name] for name in _lowest_first(chain, suffix)]
        if sentence := told(chain):
            reset |= dict.fromkeys(by_index, sentence)
    expected = {weight.name for weight in weights if weight.expected}
    claimed = {name for run in runs for name in run.parameters.values()}
    missed = refused | {
        name: "it received a gradient, but no call that used it was seen"
        for name in shared.gradients
        if name not in claimed
        and name in expected
        and not any(_lies_in(name, owner) for owner in (*refused, *loops.owners))
    }
    dtype = min((call.dtype for call in calls), key=_PRECISION.index, default=torch.float32)
    return BackwardPass(
        tuple(runs), made, dtype, missed, scale=shared.scale, resets=reset, loops=loops
    )


def _lies_in(parameter: str, owner: str) -> bool:
    return not owner or parameter.startswith(f"{owner}.")


def _without_lone_guesses(calls: list[Call]) -> list[Call]:
    """Drop calls of modules that only look like a step by an argument's name, and whose calls carry no state on."""
    owners = {call.number: call.owner for call in calls}
    steps = {
        call.owner
        for call in calls
        if any(owners.get(link.call) == call.owner for link in call.links.values())
    }
    return [call for call in calls if call.sure or call.owner in steps]


_NO_STEP = (
    "it was named as a step, and no call of it goes on from the state of another one: where one call runs over the "
    "whole sequence (a parallel scan, say) there is no step to be followed. Name the module that does one step, or "
    "call it in chunks with rnndiag.carry on the state at their boundaries"
)


def _no_steps(calls: list[Call]) -> dict[str, str]:
    """Modules named as steps whose calls carry no state on -> what to do."""
    named = {call.owner for call in calls if isinstance(call.plan.kernel, nn.Module)}
    going_on = {call.owner for call in calls if call.links}
    return dict.fromkeys(sorted(named - going_on), _NO_STEP)


def _lowest_first(chain: Chain, suffix: str) -> list[str]:
    plan, owner = chain[0].plan, chain[0].owner
    return [
        run_name(owner, layer, direction, plan.one_step, suffix)
        for layer in range(plan.layers)
        for direction in range(plan.directions)
    ]


def runs_beside_loops(seen: BackwardPass) -> tuple[list[LayerRun], tuple[LayerRun, ...]]:
    """The runs to measure, and the runs that are pieces of a loop that was measured on the graph as a whole."""
    loops = seen.loops
    whole = {found.name: found.T for found in loops.measured}
    of_members = {name for members in loops.members.values() for name in members}
    proved = whole.keys() | of_members
    kept: list[LayerRun] = []
    pieces: list[LayerRun] = []
    scattered: dict[str, list[LayerRun]] = defaultdict(list)
    count = Counter(run.loop for run in seen.layer_runs)
    for run in seen.layer_runs:
        alone = count[run.loop] == 1 and run.name == run.loop
        if not run.loop or (alone and whole.get(run.loop, run.T) == run.T):
            kept.append(run)
        elif run.loop in loops.open and run.loop not in of_members and run.T == 1:
            scattered[run.loop].append(run)
        else:
            pieces.append(run)
    for loop, own in scattered.items():
        # the one-step runs of an open loop as one run over a larger batch: their sums are unchanged
        together, _ = gathered([replace(run, name=loop) for run in own], {loop})
        (kept if len(together) == 1 else pieces).extend(together)
    # a measured loop is proved on its graph; its pieces are needed only for weights that others share
    shared = {name for run in kept for name in run.parameters.values()}
    needed = [
        run for run in pieces if run.loop not in proved or shared & {*run.parameters.values()}
    ]
    return kept, tuple(needed)
