"""Read and write whole files without following links that others may have placed at the path.

A run directory may be untrusted, and several users may share a folder of reports. A file is therefore written under a
random name, created exclusively, and renamed into place: a link at the target is replaced, never followed. A file is
read only if it is a regular one: opening a pipe would block.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

_STREAMS = ("/dev/stdout", "/dev/stderr", "/dev/null")
_STREAM_FOLDERS = ("/dev/fd/", "/proc/self/fd/")

NEW_FILE = (
    os.O_WRONLY
    | os.O_CREAT
    | os.O_EXCL
    | getattr(os, "O_NOFOLLOW", 0)
    | getattr(os, "O_CLOEXEC", 0)
    | getattr(os, "O_BINARY", 0)
)
"""Flags that open a file for writing only where none, and no link, is there."""


@contextmanager
def whole_file(path: str | os.PathLike[str], durable: bool = True) -> Iterator[IO[bytes]]:
    """A binary file to write; it gets its name atomically when the block ends.

    Args:
        path: Where to write; what is there is replaced. Missing folders are made. `/dev/stdout` and its like are
            written to as they are.
        durable: Wait until the content is on disk before it takes its name.

    Raises:
        OSError: It cannot be written there, or a folder or a device is in the way.
    """
    target = Path(path)
    if str(target) in _STREAMS or str(target).startswith(_STREAM_FOLDERS):
        with target.open("wb") as stream:
            yield stream
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    _refuse_device(target)
    # In the same folder, since a rename cannot cross file systems.
    part = target.with_name(f".{secrets.token_hex(8)}.part")
    descriptor = os.open(part, NEW_FILE, 0o666)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            if durable:
                os.fsync(file.fileno())
        os.replace(part, target)
    # Also for KeyboardInterrupt: leave no part behind.
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def write_whole(path: str | os.PathLike[str], content: str | bytes, durable: bool = True) -> Path:
    """Write bytes, or text as UTF-8, atomically (see `whole_file`); returns the path."""
    data = content.encode("utf-8", "backslashreplace") if isinstance(content, str) else content
    with whole_file(path, durable) as file:
        file.write(data)
    return Path(path)


def append_text(path: str | os.PathLike[str], text: str) -> None:
    """Append to a regular file, created if missing; a link at the path is not followed."""
    flags = (
        os.O_WRONLY
        | os.O_CREAT
        | os.O_APPEND
        | getattr(os, "O_NOFOLLOW", 0)
        | getattr(os, "O_NONBLOCK", 0)
        | getattr(os, "O_CLOEXEC", 0)
    )
    descriptor = os.open(path, flags, 0o666)
    with os.fdopen(descriptor, "ab") as file:
        _require_regular(descriptor, path)
        file.write(text.encode("utf-8", "backslashreplace"))


def read_regular(path: str | os.PathLike[str], most_bytes: int) -> bytes:
    """The content of a regular file of at most `most_bytes`; a link at the path is followed.

    Raises:
        OSError: It cannot be read, is a pipe, a device or a folder, or is larger (errno EFBIG).
    """
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
    descriptor = os.open(path, flags | getattr(os, "O_BINARY", 0))
    with os.fdopen(descriptor, "rb") as file:
        _require_regular(descriptor, path)
        data = file.read(most_bytes + 1)
    if len(data) > most_bytes:
        raise OSError(errno.EFBIG, f"it is larger than {most_bytes} bytes", str(path))
    return data


def _require_regular(descriptor: int, path: str | os.PathLike[str]) -> None:
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, "it is a directory", str(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))


def _refuse_device(target: Path) -> None:
    try:
        mode = os.lstat(target).st_mode
    except FileNotFoundError:
        return
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, "it is a directory", str(target))
    if stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
        raise OSError(errno.EINVAL, "it is a device", str(target))
