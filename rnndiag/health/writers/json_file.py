"""The result of a gate as JSON: all findings and the outcome."""

from __future__ import annotations

import json
from dataclasses import asdict

from rnndiag.health.result import CheckResult


def json_text(judgement: CheckResult) -> str:
    """Strict JSON, ending in a newline."""
    outcome = judgement.outcome
    heading = judgement.verdict
    content = {
        "format": "rnndiag check",
        "version": 1,
        "runs": list(judgement.paths),
        "baseline": judgement.against,
        "judged": judgement.scope,
        "outcome": {**asdict(outcome), "word": outcome.word, "sentence": outcome.sentence},
        "verdict": {"word": heading.word, "sentence": heading.sentence, "advice": heading.advice},
        "findings": [one.as_json() for one in judgement.findings],
        "versions": dict(judgement.versions),
    }
    return json.dumps(content, indent=1, allow_nan=False) + "\n"
