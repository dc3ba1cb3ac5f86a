"""The result of a gate as JUnit XML for CI servers: one test case per check and layer."""

from __future__ import annotations

from xml.etree import ElementTree

from rnndiag.health.finding import Finding
from rnndiag.health.result import CheckResult
from rnndiag.store.safe_text import printable


def junit_text(judgement: CheckResult) -> str:
    """The XML document: a failure as `failure`, what could not be judged as `error`, a note as `skipped`."""
    cases = [one for one in judgement.findings if one.status != "note" or one.value is not None]
    root = ElementTree.Element("testsuites", name="rnndiag")
    suite = ElementTree.SubElement(
        root,
        "testsuite",
        name=printable(judgement.title),
        tests=str(len(cases)),
        failures=str(sum(one.status == "fail" for one in cases)),
        errors=str(sum(one.status == "not_judged" for one in cases)),
        skipped=str(sum(one.status in ("note", "warn") for one in cases)),
    )
    for one in cases:
        _case(suite, one)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _case(suite: ElementTree.Element, one: Finding) -> None:
    case = ElementTree.SubElement(
        suite,
        "testcase",
        classname=printable(f"rnndiag.{one.layer or 'model'}"),
        name=printable(one.check),
    )
    tag = {"fail": "failure", "not_judged": "error", "warn": "skipped", "note": "skipped"}.get(
        one.status
    )
    if tag is None:
        return
    found = f"{one.text_value} (allowed: {one.allowed})" if one.allowed else one.text_value
    entry = ElementTree.SubElement(
        case, tag, message=printable(f"{found}: {one.message}".lstrip(": "))
    )
    entry.text = "\n".join(printable(line) for line in (*one.details, one.remedy) if line)
