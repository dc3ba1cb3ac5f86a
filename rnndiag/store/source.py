"""Reads the bytes of a run: from a local directory, or a remote one through fsspec."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Protocol
from weakref import WeakKeyDictionary

from rnndiag.errors import NotInstalled, RunUnreadable
from rnndiag.store.redact import redact_addresses


class NotRegular(OSError):
    """The file is a link, a pipe, a device or a folder."""


def _read_at(descriptor: int, size: int, start: int) -> bytes:
    os.lseek(descriptor, start, os.SEEK_SET)
    return os.read(descriptor, size)


read_at: Callable[[int, int, int], bytes] = getattr(os, "pread", _read_at)
"""read_at(descriptor, size, start): at most `size` bytes from offset `start`."""


def write_at(descriptor: int, data: bytes | memoryview, start: int) -> int:
    """Write at offset `start`; returns the number of bytes written."""
    if hasattr(os, "pwrite"):
        return os.pwrite(descriptor, data, start)
    os.lseek(descriptor, start, os.SEEK_SET)
    return os.write(descriptor, data)


def sync_directory(path: Path) -> None:
    """fsync a directory so that new names in it survive a crash; no effect on Windows, which cannot open one."""
    if os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as fault:
        # some network shares do not support fsync
        if fault.errno not in (errno.EINVAL, errno.EBADF, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def refuse_to_leave(root: Path, folder: Path) -> None:
    """Raise NotRegular where `folder`, inside of the run directory `root`, is a link that leads out of it."""
    if folder.is_symlink() and not folder.resolve().is_relative_to(root.resolve()):
        raise NotRegular(
            errno.ELOOP, f"{folder.name} is a link that leads out of the run, to {folder.resolve()}"
        )


class File(Protocol):
    """A file that is only ever appended to."""

    def size(self) -> int:
        """Current size in bytes."""

    def read(self, start: int, size: int) -> bytes:
        """At most `size` bytes from `start`."""

    def modified(self) -> float:
        """Time of the last write, unix seconds."""

    def close(self) -> None:
        """Close the file."""


class LocalFile:
    """A regular local file, opened without following links and read by position.

    With many files (`open_runs("logs/**")`) only the most recently used stay open; the others are reopened on access.
    """

    _open: ClassVar[WeakKeyDictionary[LocalFile, None]] = WeakKeyDictionary()
    _MOST_OPEN = 128

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = -1
        self._identity: tuple[int, int] | None = None
        self._opened()

    def _opened(self) -> int:
        """The file descriptor, reopened if it was closed meanwhile."""
        if self._descriptor >= 0:
            return self._descriptor
        # Opening a device may have side effects: check before, and again in case of a race.
        if not stat.S_ISREG(os.lstat(self._path).st_mode):
            raise NotRegular("not a regular file")
        flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
        self._descriptor = os.open(self._path, flags | getattr(os, "O_BINARY", 0))
        found = os.fstat(self._descriptor)
        identity = (found.st_dev, found.st_ino)
        self._identity = self._identity or identity
        if not stat.S_ISREG(found.st_mode) or identity != self._identity:
            self.close()
            raise NotRegular("not a regular file, or replaced since the run was opened")
        self._open[self] = None
        # Stay well below the usual limit of open files per process.
        while len(self._open) > self._MOST_OPEN:
            next(iter(self._open)).close()
        return self._descriptor

    def size(self) -> int:
        """Current size in bytes."""
        return os.fstat(self._opened()).st_size

    def modified(self) -> float:
        """Time of the last write, unix seconds."""
        return os.fstat(self._opened()).st_mtime

    def read(self, start: int, size: int) -> bytes:
        """At most `size` bytes from `start`."""
        return read_at(self._opened(), size, start)

    def close(self) -> None:
        """Close the descriptor."""
        self._open.pop(self, None)
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __del__(self) -> None:
        if getattr(self, "_descriptor", -1) >= 0:
            os.close(self._descriptor)


class LocalDirectory:
    """A local directory, by absolute path: it stays valid if the working directory changes."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(os.path.abspath(path))
        self.name = str(path)

    def exists(self) -> bool:
        """Whether the directory exists."""
        return self.path.is_dir()

    def names(self, folder: str) -> list[str]:
        """Sorted names in a folder of the directory; empty if there is no such folder."""
        refuse_to_leave(self.path, self.path / folder)
        try:
            return sorted(os.listdir(self.path / folder))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def open(self, name: str) -> File:
        """Open a file of the directory; raises OSError if that fails."""
        return LocalFile(self.path / name)


class RemoteUnreadable(OSError):
    """A remote store failed to answer: access denied, unknown host, no credentials, connection lost."""


@contextmanager
def _asking(what: str) -> Iterator[None]:
    """Turn any error of a store's client into RemoteUnreadable; errors that say 'not found' pass unchanged."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError, NotRegular):
        raise
    except Exception as fault:
        # every client has errors of its own, and most of them are no OSError
        told = redact_addresses(str(fault).strip().partition("\n")[0]) or "no reason"
        raise RemoteUnreadable(f"{what} failed: {type(fault).__name__}: {told}") from fault


class RemoteFile:
    """A file behind fsspec, fetched once; later only the bytes appended since."""

    def __init__(self, filesystem: Any, path: str) -> None:
        self._filesystem, self._path = filesystem, path
        with _asking("looking for a file"):
            if filesystem.info(path).get("type") != "file":
                raise NotRegular("not a regular file")
        self._data = b""

    def size(self) -> int:
        """Current size in bytes."""
        with _asking("reading a file"):
            self._filesystem.invalidate_cache()
            size = int(self._filesystem.info(self._path)["size"])
            if size > len(self._data):
                self._data += self._filesystem.cat_file(self._path, start=len(self._data), end=size)
        return min(size, len(self._data))

    def modified(self) -> float:
        """Time of the last write, unix seconds; 0 if the store does not report it."""
        try:
            with _asking("reading a file"):
                return float(self._filesystem.modified(self._path).timestamp())
        except OSError:
            return 0.0

    def read(self, start: int, size: int) -> bytes:
        """At most `size` bytes from `start`."""
        return self._data[start : start + size]

    def close(self) -> None:
        """Drop the cached bytes."""
        self._data = b""


class RemoteDirectory:
    """A directory behind fsspec, by its URL. `name` is the URL without credentials."""

    def __init__(self, url: str) -> None:
        self.name = redact_addresses(url)
        try:
            import fsspec  # type: ignore[import-untyped,unused-ignore]
        except ImportError:
            raise NotInstalled(
                f"Reading {self.name} needs fsspec, which is not installed.",
                "Run: pip install fsspec",
            ) from None
        try:
            with _asking("opening it"):
                self._filesystem, self._root = fsspec.core.url_to_fs(url)
        except OSError as fault:
            raise RunUnreadable(
                f"{self.name} cannot be opened: {fault}.",
                "Check the address, the network and your credentials, install what fsspec needs for it, or copy the "
                "run here.",
            ) from None

    def exists(self) -> bool:
        """Whether the directory exists."""
        with _asking("looking for the directory"):
            return bool(self._filesystem.isdir(self._root))

    def names(self, folder: str) -> list[str]:
        """Sorted names in a folder of the directory; empty if there is no such folder."""
        try:
            with _asking("listing a directory"):
                found = self._filesystem.ls(
                    f"{self._root}/{folder}".rstrip("/"), detail=False, refresh=True
                )
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted(path.rstrip("/").rpartition("/")[2] for path in found)

    def open(self, name: str) -> File:
        """Open a file of the directory; raises OSError if that fails."""
        return RemoteFile(self._filesystem, f"{self._root}/{name}")


Directory = LocalDirectory | RemoteDirectory


def directory(path: str | os.PathLike[str]) -> Directory:
    """The directory at a path, or at a URL such as s3://bucket/run."""
    if isinstance(path, str) and "://" in path:
        return RemoteDirectory(path)
    return LocalDirectory(path)
