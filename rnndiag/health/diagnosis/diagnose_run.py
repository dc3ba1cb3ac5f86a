"""`rnndiag.diagnose`: the state of a run, one sentence, and ranked causes with remedies."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from rnndiag.health.diagnosis.diagnosis import Cause, Diagnosis, State, state_words
from rnndiag.health.diagnosis.features import LATE, Features, features_of
from rnndiag.health.diagnosis.recorded import Recorded
from rnndiag.health.diagnosis.registry import RULES
from rnndiag.health.diagnosis.rule import Found, Rule, Situation, View, number, power
from rnndiag.health.diagnosis.states import FEWEST_STEPS, StateOf, state_of
from rnndiag.store.reader import StoredRun
from rnndiag.store.recording import Recording

EARLY = 100
"""A fit of fewer steps may simply have been too short."""
_BROKEN = ("structure", "data")


def diagnose(
    run: StoredRun | Recording, *, chance: float | None = None, needs: int | str | None = None
) -> Diagnosis:
    """Say whether the model learns, and if not, why not and what to change.

    Args:
        run: A run, as `open_run` gives it, or one recording, for which only structural faults can be found.
        chance: The loss of a constant answer. None: as stored in the run.
        needs: Steps back that the task needs to see, or a duration in the run's time unit. None: as
            stored in the run.

    Returns:
        The diagnosis: state, headline and causes. Needs numpy only.

    Example:
        >>> rnndiag.diagnose(rnndiag.open_run("runs/exp1")).causes[0].remedy
        Remedy(knob='forget_bias', value=3.4, sentence='Start the forget bias at ln(30 - 1) = 3.4 ...')
    """
    # A diagnosis must report numbers that are not finite, without numpy warnings.
    with np.errstate(all="ignore"):
        return diagnosis_of(features_of(Recorded(run), chance, needs))


def diagnosis_of(features: Features) -> Diagnosis:
    """The diagnosis from extracted features."""
    by_loss = state_of(features)
    view = View(features, _situation(by_loss))
    found: list[tuple[Rule, Found]] = []
    for rule in RULES:
        named = {earlier.cause for earlier, _ in found}
        if view.situation not in rule.situations or rule.cause in named or (rule.alone and found):
            continue
        if (one := rule.find(view)) is None:
            continue
        if rule.cause != "not_trusted":
            found.append((rule, one))
            continue
        # Rounding fails the proofs of a net whose numbers are huge, which an earlier rule has said then.
        if not any(earlier.group in ("data", "step", "start") for earlier, _ in found):
            found.append((rule, one))
        break  # later rules read the numbers whose proof failed
    state = _state(by_loss, found)
    if by_loss.state == "learned" and not by_loss.at_rest:
        found = [pair for pair in found if pair[0].group in _BROKEN]
    causes = [_cause(rule, one, found) for rule, one in found]
    if not causes and state in ("stuck", "diverged", "cannot_tell") and features.loss.count:
        causes = [_cannot_tell(features, state)]
    steps = tuple(step for step in features.recordings if step >= LATE * features.loss.last_step)
    at_rest = by_loss.at_rest and state == "learned"
    return Diagnosis(
        state, _headline(features, state, at_rest, causes), tuple(causes), at_rest, steps
    )


def _situation(by_loss: StateOf) -> Situation:
    if by_loss.at_rest:
        return "at rest"
    found: Situation = "broken" if by_loss.state == "not_trusted" else by_loss.state
    return found


def _state(by_loss: StateOf, found: Sequence[tuple[Rule, Found]]) -> State:
    """The state after causes are known: structural faults mean broken unless learned; at rest with a cause means
    stuck."""
    learned = by_loss.state == "learned" and not by_loss.at_rest
    if found and found[0][0].cause == "not_trusted":
        return "not_trusted"
    if found and found[0][0].group in _BROKEN and not learned:
        return "broken"
    if by_loss.at_rest and found:
        return "stuck"
    return by_loss.state


def _cause(rule: Rule, one: Found, found: Sequence[tuple[Rule, Found]]) -> Cause:
    """The cause found by a rule; if an earlier cause may explain it, it has no remedy of its own."""
    consequence = rule.group == "later" and found[0][0].group != "later"
    return Cause(
        rule.cause,
        one.layer,
        one.sentence,
        one.evidence,
        None if consequence else one.remedy,
        one.confidence,
    )


def _cannot_tell(features: Features, state: State) -> Cause:
    """The cause named where no rule applies, with the measurements nearest to one."""
    loss = features.loss
    if loss.steps < FEWEST_STEPS:
        sentence = f"{loss.steps} steps are too few to say anything: train for 100 at least."
        return Cause("cannot_tell", "", sentence, (), None, "low")
    parts = []
    for layer in features.layers:
        credit = layer.credit[1]
        if credit is not None and credit.last_lag > 0:
            far = credit.far
            parts.append(
                f"{power(far.value)} of the credit is left at lag {credit.last_lag} (step {far.step})"
            )
            break
    path = features.sizes.longest_path
    if not math.isnan(path):
        parts.append(f"all steps together moved the weights by {number(path)} of their size")
    measured = f": {', '.join(parts)}" if parts else ""
    early = "Below 100 steps it may be too early. " if loss.steps < EARLY else ""
    length = max((layer.length for layer in features.layers), default=0)
    return Cause(
        "cannot_tell",
        "",
        f"Nothing measured explains it{measured}. {early}What is left: the answer is not in these {length} steps, the "
        "targets do not depend on the inputs, or the fit is too short. Give needs= or chance=, or train longer.",
        (),
        None,
        "low",
    )


def _headline(features: Features, state: State, at_rest: bool, causes: Sequence[Cause]) -> str:
    """The state, then the first cause with its remedy, as one sentence."""
    change = _what_the_loss_did(features, state, at_rest)
    word = state_words(state).capitalize()
    if state in ("learned", "learning") and not causes:
        word = f"Healthy, {state}"
    if at_rest:
        word = "At rest"
    parts = [f"{word}: {change}."] if change else [f"{word}."]
    if causes:
        first = causes[0]
        but = "But: " if state in ("learned", "learning") else ""
        parts.append(f"{but}{first.sentence}")
        if first.remedy is not None:
            parts.append(first.remedy.sentence)
    return " ".join(parts)


def _what_the_loss_did(features: Features, state: State, at_rest: bool) -> str:
    """The change of the loss and the monitored metric over the fit, in words."""
    loss = features.loss
    if not loss.count:
        return "no loss was recorded"
    went = f"the loss went from {number(loss.start)} to {number(loss.end)} in {loss.steps} steps"
    metric = [one for one in features.metric if math.isfinite(one.value)]
    if len(metric) > 1:
        name = features.setup.monitored or "the monitored metric"
        went += (
            f" ({name} from {number(metric[0].value)} at step {metric[0].step} to "
            f"{number(metric[-1].value)} at step {metric[-1].step})"
        )
    if loss.ends_nonfinite:
        return f"the loss is not finite at step {loss.last_step}"
    if state == "stuck":
        if loss.end < 0.5 * loss.start:
            return f"{went} and has come to rest there"
        ignored = features.swing.below(0.12)
        return f"{went}{' and the model answers as if it did not see its input' if ignored else ' and no longer falls'}"
    if state == "diverged":
        return f"{went} (its best was {number(loss.best)} near step {loss.best_step})"
    if at_rest:
        return f"{went} and no longer falls: learned as far as can be told"
    return went
