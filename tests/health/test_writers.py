"""Writers: hostile names stay text in every format, GitHub's limits hold, JSON is strict, all tell the same."""

from __future__ import annotations

import json
import re
from xml.etree import ElementTree

import pytest

from rnndiag.errors import CannotJudge
from rnndiag.health.finding import STATUSES, Finding
from rnndiag.health.outcome import exit_code, verdict
from rnndiag.health.result import CheckResult, cannot_judge
from rnndiag.health.writers.console import console_text
from rnndiag.health.writers.github import MOST_ANNOTATIONS, annotation_lines, summary
from rnndiag.health.writers.json_file import json_text
from rnndiag.health.writers.junit import junit_text
from rnndiag.health.writers.markdown import markdown_text

HOSTILE = '<script>alert(1)</script> | `x` **b** @everyone ::error::\n\x1b[31m]]> & "q" [l](http://x) \u202e #1'


def judgement(*findings: Finding, path: str = "runs/a") -> CheckResult:
    return CheckResult(
        (path,),
        "base.json (5 runs)",
        "recordings 1-5 of 5",
        findings,
        {"torch": "2"},
        "accept it",
        "see it",
    )


def failing(layer: str = "rnn.l0", **more: object) -> Finding:
    facts = {
        "value": 18.6,
        "text_value": "18.6 steps",
        "allowed": "40 to 180",
        "since_step": 340,
        "message": "short",
        "remedy": "Do this.",
        "details": ("since step 340",),
        **more,
    }
    return Finding("reach", "fail", layer, **facts)  # type: ignore[arg-type]


def hostile() -> CheckResult:
    return judgement(failing(HOSTILE, message=HOSTILE, details=(f"since {HOSTILE}",)), path=HOSTILE)


def test_junit_is_xml_whatever_the_names() -> None:
    root = ElementTree.fromstring(junit_text(hostile()).partition("\n")[2])
    case = root.find(".//testcase/failure")
    assert case is not None
    assert "<script>" in str(case.get("message"))
    assert "\x1b" not in junit_text(hostile())


def test_markdown_shows_hostile_text_and_obeys_none_of_it() -> None:
    text = markdown_text(hostile())
    plain = re.sub(r"</?(code|details|summary|sub)>", "", text)
    for sign in ("<script", "[l](", "@everyone", "**b**", "\x1b", "\u202e"):
        assert sign not in plain
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert {row.count("|") for row in rows} <= {5, 7}


def test_markdown_has_the_verdict_the_worst_finding_and_the_command() -> None:
    text = markdown_text(
        judgement(failing(word="SHORT MEMORY"), Finding("decay", "pass", "rnn.l0", 0.9, "0.9"))
    )
    lines = text.splitlines()
    assert lines[0] == "## rnndiag: FAIL, 1 failed, 1 passed, 0 not judged"
    assert lines[2] == "**▲ SHORT MEMORY: Short.** in <code>rnn.l0</code>"
    assert "| check | layer | found | allowed | baseline | since step |" in lines
    assert "| FAIL reach | rnn.l0 | 18.6 steps | 40 to 180 |  | 340 |" in lines
    assert any(line.startswith("<details><summary>1 passed") for line in lines)
    assert "Meant to change it? <code>accept it</code>" in lines


def test_annotations_are_one_line_each_and_at_most_ten() -> None:
    many = judgement(*[failing(f"l{i}") for i in range(25)])
    lines = annotation_lines(many).splitlines()
    assert len(lines) == MOST_ANNOTATIONS
    assert lines[-1].endswith("16 more findings are in the step summary")
    assert all(re.match(r"::(error|warning) title=[^:]*::", line) for line in lines)
    (only,) = annotation_lines(hostile()).splitlines()
    title = only.removeprefix("::error title=").partition("::")[0]
    assert "%3A%3Aerror%3A%3A" in title


def test_a_summary_never_outgrows_its_limit() -> None:
    many = judgement(*[failing(f"layer-{i}" * 20) for i in range(5000)])
    assert len(markdown_text(many).encode()) > 1 << 20
    assert len(summary(many).encode()) <= 1 << 20
    assert summary(many).rstrip().endswith("a step summary holds 1 MiB.")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1.0, None])
def test_json_is_strict_and_findings_come_back(value: float | None) -> None:
    one = failing(value=value)
    content = json.loads(json_text(judgement(one)), parse_constant=pytest.fail)
    back = Finding.from_json(content["findings"][0])
    assert repr(back) == repr(one)
    assert content["outcome"]["code"] == 1


def test_console_escapes_what_could_move_the_cursor() -> None:
    text = console_text(hostile())
    assert "\x1b" not in text
    assert "\\x1b[31m" in text


def test_what_cannot_be_judged_is_an_error_in_every_format() -> None:
    found = cannot_judge(
        ["runs/a"], CannotJudge("cannot judge runs/a\n  3 recordings.", "Record more.")
    )
    assert found.outcome.code == 3
    assert 'errors="1"' in junit_text(found)
    assert "CANNOT JUDGE" in markdown_text(found)
    assert annotation_lines(found).startswith("::error")


def test_the_verdict_is_the_worst_of_its_findings() -> None:
    noted = Finding(
        "reach", "note", "a", 3.0, "3", notable=True, word="SHORT MEMORY", message="short"
    )
    warned = Finding("grad_spikes", "warn", "model", word="GRADIENT SPIKES", message="spikes")
    doubted = Finding(
        "residual", "not_judged", "a", word="NOT TO BE TRUSTED", message="the sum law fails"
    )
    passed = Finding("nonfinite", "pass", "a", 0.0, "0")
    words = [
        verdict(found).word
        for found in (
            [passed],
            [noted, passed],
            [noted, warned],
            [noted, warned, failing(word="CHANGED")],
            [failing(word="CHANGED"), doubted],
        )
    ]
    assert words == [
        "NO FAULT FOUND",
        "SHORT MEMORY",
        "GRADIENT SPIKES",
        "CHANGED",
        "NOT TO BE TRUSTED",
    ]
    assert verdict([passed]).kind == "well"
    assert verdict([doubted, passed]).kind == "unsure"


@pytest.mark.parametrize(
    ("statuses", "code"),
    [
        (["pass"], 0),
        (["pass", "warn", "note"], 0),
        (["pass", "fail"], 1),
        (["fail", "not_judged"], 1),
        (["pass", "not_judged"], 3),
        (["note"], 3),
        ([], 3),
    ],
)
def test_precedence_of_exit_codes(statuses: list[str], code: int) -> None:
    found = [
        Finding(f"check{i}", status) for i, status in enumerate(statuses) if status in STATUSES
    ]
    assert exit_code(found) == code
    assert exit_code([*found, Finding("residual", "not_judged")]) == 3


@pytest.mark.parametrize(
    "plain",
    [
        None,
        [],
        {"check": "a"},
        {"check": 1, "status": "fail"},
        {"check": "a", "status": "odd"},
        {"check": "a", "status": "fail", "value": "x"},
    ],
)
def test_what_is_no_finding_is_refused(plain: object) -> None:
    with pytest.raises((TypeError, ValueError)):
        Finding.from_json(plain)
