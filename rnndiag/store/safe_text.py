"""Makes text safe for terminals and CI logs. Imports no numpy, so that `rnndiag --help` starts fast."""

from __future__ import annotations

import re

from rnndiag.store.redact import redact_addresses


def printable(text: object) -> str:
    """The text with every character escaped that could move a terminal's cursor or hide text."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode("ascii")
        for c in str(text)
    )


_COMMAND = re.compile(r"^(\s*):(?=:)")
_OLD_COMMAND = re.compile(r"##(?=(?:vso)?\[)")


def safe_line(line: str) -> str:
    """A line that is safe to print on a terminal or in a CI log.

    Control and bidirectional characters are escaped, credentials in addresses are left out, and a line cannot begin
    with `::`, nor hold `##[` or `##vso[`, which GitHub and Azure run as commands.
    """
    if not (line.isascii() and line.isprintable()):
        line = printable(line)
    if ":/" in line:
        line = redact_addresses(line)
    if "::" in line:
        line = _COMMAND.sub(r"\1\\x3a", line)
    return _OLD_COMMAND.sub(r"#\\x23", line) if "##" in line else line
