"""Makes the findings of the preflight, of the type shared by all of rnndiag."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rnndiag.health.finding import Finding, Status

PREFIX = "preflight: "


def finding(
    check: str,
    status: Status,
    message: str,
    remedy: str = "",
    layer: str = "",
    details: tuple[str, ...] = (),
) -> Finding:
    """A finding of one structural check. Imports its type, which lives in the numpy packages, on first use."""
    from rnndiag.health import Finding

    word = "" if status in ("pass", "note", "not_judged") else check.upper()
    return Finding(
        check=PREFIX + check,
        status=status,
        layer=layer,
        message=message,
        remedy=remedy,
        details=details,
        word=word,
    )
