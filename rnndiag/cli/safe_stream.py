"""Escapes what a command prints: names in a run are untrusted, and CI logs interpret some lines."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TextIO, cast

from rnndiag.store.safe_text import safe_line


class SafeStream(io.TextIOBase):
    """A text stream that escapes what a terminal or CI log would interpret (see `safe_line`), then writes to `raw`.

    Lines are held back until they are complete, so that a command cannot be assembled from two writes.
    """

    def __init__(self, raw: TextIO) -> None:
        self.raw = raw
        self._line = ""

    def write(self, text: str) -> int:
        """Write complete lines; keep what follows the last line break."""
        *lines, self._line = (self._line + text).split("\n")
        if lines:
            self.raw.write("".join(f"{safe_line(line)}\n" for line in lines))
        return len(text)

    def flush(self) -> None:
        """Write the incomplete last line."""
        if self._line:
            line, self._line = self._line, ""
            self.raw.write(safe_line(line))
        self.raw.flush()

    def writable(self) -> bool:
        """True."""
        return True

    def isatty(self) -> bool:
        """Whether the underlying stream is a terminal."""
        return self.raw.isatty()

    def fileno(self) -> int:
        """The file descriptor of the underlying stream."""
        return self.raw.fileno()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """The encoding of the underlying stream."""
        return self.raw.encoding


@contextmanager
def safe_streams() -> Iterator[None]:
    """Replace `sys.stdout` and `sys.stderr` by safe streams within the `with` block."""
    before = sys.stdout, sys.stderr
    out, err = SafeStream(before[0]), SafeStream(before[1])
    sys.stdout, sys.stderr = cast(TextIO, out), cast(TextIO, err)
    try:
        yield
    finally:
        with suppress(OSError, ValueError):
            err.flush()
        with suppress(OSError, ValueError):
            out.flush()
        sys.stdout, sys.stderr = before


def write_as_is(text: str) -> None:
    """Write text to standard output without escaping, for workflow commands that rnndiag made itself."""
    stream = sys.stdout
    stream.flush()
    raw = stream.raw if isinstance(stream, SafeStream) else stream
    raw.write(text)
