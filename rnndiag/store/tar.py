"""The tar container of a segment: one member appended after the other, readable at any moment by `tar tvf`.

Headers are made by `tarfile`; they are read by hand, because `tarfile` is ten times slower per member and believes
sizes that do not fit the file.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from zlib import crc32

BLOCK = 512
END = bytes(2 * BLOCK)
"""Two zero blocks, which end a tar archive."""

OPEN, CLOSE = "open.json", "end.json"
_RECORDING = re.compile(r"step-([0-9]{12,19})-([^/]+)\.npz")
_MARK = b"ustar"
_MARK_AT = 257


@dataclass(frozen=True, slots=True)
class Member:
    """One member of the archive: name, offset of its content in bytes, size."""

    name: str
    start: int
    size: int
    guard: str = ""

    @property
    def end(self) -> int:
        """Offset of the next header."""
        return self.start + padded(self.size)


def padded(size: int) -> int:
    """`size` rounded up to a multiple of BLOCK."""
    return -(-size // BLOCK) * BLOCK


def guard_of(content: bytes) -> str:
    """Checksum of a JSON member, stored as the owner's name in its header."""
    return f"crc32-{crc32(content):08x}"


def json_member(name: str, content: bytes, time: float) -> bytes:
    """A JSON member as bytes; its checksum is stored in the header, since JSON content carries none."""
    return member(name, content, time, guard_of(content))


def member(name: str, content: bytes, time: float, owner: str = "") -> bytes:
    """Header, content and padding of one member as bytes, to be written in one call."""
    import tarfile  # imported here: it loads bz2 and shutil, which readers do not need

    info = tarfile.TarInfo(name)
    info.uname = owner
    info.size, info.mtime, info.mode = len(content), max(0, int(time)), 0o644
    return b"".join(
        (info.tobuf(tarfile.USTAR_FORMAT), content, bytes(padded(len(content)) - len(content)))
    )


def recording_name(step: int, phase: str) -> str:
    """`step-000000000100-train.npz`; the phase is percent-encoded by the caller."""
    return f"step-{step:012d}-{phase}.npz"


def recording_key(name: str) -> tuple[int, str] | None:
    """Step and encoded phase of a member's name; None if it is not a recording."""
    found = _RECORDING.fullmatch(name)
    return (int(found[1]), found[2]) if found and int(found[1]) < 2**63 else None


def header(block: bytes, at: int) -> Member | None:
    """The member whose header is `block`, found at offset `at`; None where the header is damaged."""
    if len(block) != BLOCK or block[_MARK_AT : _MARK_AT + 5] != _MARK:
        return None
    try:
        claimed = int(block[148:156].rstrip(b"\0 "), 8)
        size = int(block[124:136].rstrip(b"\0 "), 8)
        name = block[: block.index(b"\0")].decode("ascii")
    except ValueError:
        return None
    # A tar checksum counts its own eight bytes as spaces; type "0" is a regular file.
    if sum(block) - sum(block[148:156]) + 8 * 32 != claimed or block[156:157] != b"0" or size < 0:
        return None
    guard = block[265:297].rstrip(b"\0").decode("ascii", "replace")
    return Member(name, at + BLOCK, size, guard)


def next_mark(window: bytes, at: int) -> int | None:
    """The first block boundary in `window` (which starts at the boundary `at`) that looks like a header."""
    found = window.find(_MARK)
    while found >= 0:
        start = found - _MARK_AT
        if start >= 0 and start % BLOCK == 0:
            return at + start
        found = window.find(_MARK, found + 1)
    return None
