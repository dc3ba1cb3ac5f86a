"""Planted faults on trained programs are caught by the rule meant for each, and the healthy programs pass."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.faults import FAULTS, PROJECTS, failed, findings_of

QUICK = ("RNN, short", "NaN at step 30", "dead relu")
"""A part that is fit for every run of the tests: the whole takes some two minutes of CPU time."""


def marked(names: Iterable[str]) -> list[Any]:
    """All names, `slow` or `long`."""
    marks = {True: pytest.mark.slow, False: pytest.mark.long}
    return [pytest.param(name, marks=marks[name in QUICK]) for name in names]


@pytest.mark.parametrize("name", marked(PROJECTS))
def test_a_healthy_program_passes(name: str, tmp_path: Path) -> None:
    found = findings_of(name, PROJECTS[name].program, tmp_path / "run")
    assert failed(found) == []
    assert not [one for one in found if one.status == "not_judged"]


@pytest.mark.parametrize("name", marked(FAULTS))
def test_a_planted_fault_is_caught_by_the_rule_meant_for_it(name: str, tmp_path: Path) -> None:
    fault = FAULTS[name]
    found = findings_of(fault.project, fault.program, tmp_path / "run")
    assert fault.rule in failed(found), [(one.check, one.text_value) for one in found]
    told = next(one for one in found if one.check == fault.rule and one.status == "fail")
    assert told.remedy
    assert told.message
