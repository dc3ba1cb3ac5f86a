"""One case tried: what was planted, what was named first, and whether the first remedy cured it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.trial.cases import Case
from benchmarks.trial.fit import Fitted
from rnndiag.health.diagnosis import Diagnosis

ENOUGH = 0.8
"""A net that reaches this share of the healthy net's fall of the loss is not hurt, or is cured."""
NAMES_NOTHING = ("cannot_tell", "nothing")


def fall_share(one: Fitted, healthy: Fitted) -> float:
    """Its fall of the loss over that of the healthy net, both from the healthy net's start."""
    fall = healthy.first_loss - healthy.last_loss
    reached = healthy.first_loss - one.last_loss
    return reached / fall if fall > 0 and math.isfinite(reached) else -math.inf


@dataclass(frozen=True)
class Outcome:
    """What came of a case. `cured` is None where no remedy was applied."""

    case: Case
    fitted: Fitted
    diagnosis: Diagnosis
    share: float
    """Share of the healthy fall that the faulty net reached."""
    cured: bool | None = None

    @property
    def first(self) -> str:
        """The first cause."""
        return self.diagnosis.causes[0].name if self.diagnosis.causes else "nothing"

    @property
    def control(self) -> bool:
        """Whether nothing was planted."""
        return self.case.program == self.case.healthy

    @property
    def hurt(self) -> bool:
        """Whether the planted fault keeps the net from learning."""
        return not self.control and self.share < ENOUGH

    @property
    def right(self) -> bool:
        """Whether the first cause is a planted one; of a case without one, whether none is named."""
        return self.first in (self.case.causes or NAMES_NOTHING)

    def line(self) -> str:
        """The case in one line."""
        program, found = self.case.program, self.diagnosis
        remedy = found.causes[0].remedy if found.causes else None
        cured = "" if self.cured is None else " cured" if self.cured else " not cured"
        return (
            f"{self.case.planted:16} {program.task:11} {program.cell:5} seed {program.seed} H {program.hidden}: "
            f"loss {self.fitted.first_loss:.3g} -> {self.fitted.last_loss:.3g} ({self.share:.0%} of healthy); "
            f"{found.state}, {self.first}"
            f"{f', {remedy.knob} = {remedy.value}{cured}' if remedy else ''}"
        )


def table(outcomes: Sequence[Outcome]) -> str:
    """Shares and the confusion matrix, as text."""
    known = [one for one in outcomes if one.case.causes]
    lines = []
    for title, chosen in (
        ("planted, hurt", [o for o in known if o.hurt and o.case.kind == "fault"]),
        ("planted mildly, hurt", [o for o in known if o.hurt and o.case.kind == "mild"]),
        ("planted in other forms, hurt", [o for o in known if o.hurt and "shape" in o.case.kind]),
    ):
        lines += _shares(title, chosen)
    harmless = [o for o in known if not o.hurt]
    lines.append(_count("named though harmless", [o.first not in NAMES_NOTHING for o in harmless]))
    controls = [o for o in outcomes if o.control]
    lines.append(_count("false alarms (healthy)", [o.first not in NAMES_NOTHING for o in controls]))
    lines.append(_count("cannot tell (healthy)", [o.first == "cannot_tell" for o in controls]))
    unknowable = [o for o in outcomes if not o.control and not o.case.causes]
    lines.append(_count("no cause to name, none named", [o.right for o in unknowable]))
    lines += ["", *_confusion([o for o in known if o.hurt])]
    return "\n".join(lines)


def _shares(title: str, chosen: Sequence[Outcome]) -> list[str]:
    tried = [o.cured for o in chosen if o.cured is not None]
    return [
        _count(f"{title}: planted cause first", [o.right for o in chosen]),
        _count(f"{title}: cannot tell", [o.first == "cannot_tell" for o in chosen]),
        _count(f"{title}: no cause named", [o.first == "nothing" for o in chosen]),
        _count(f"{title}: cured by the first remedy, of those with one", [bool(c) for c in tried]),
        _count(f"{title}: cured, of all", [bool(o.cured) for o in chosen]),
    ]


def _count(title: str, flags: Sequence[bool]) -> str:
    share = f"{sum(flags) / len(flags):6.1%}" if flags else "     -"
    return f"{title:75} {share}  ({sum(flags)} of {len(flags)})"


def _confusion(outcomes: Sequence[Outcome]) -> list[str]:
    counts = Counter((o.case.planted, o.first) for o in outcomes)
    lines = ["planted (hurt)     first cause named"]
    for planted in dict.fromkeys(o.case.planted for o in outcomes):
        named = [(first, n) for (p, first), n in counts.items() if p == planted]
        named.sort(key=lambda pair: -pair[1])
        lines.append(f"{planted:18} {', '.join(f'{first} {n}' for first, n in named)}")
    return lines
