"""Wraps one recording in memory as a run, so that code written for runs can read it."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from typing import Any

from rnndiag.errors import BadArgument
from rnndiag.store.reader import StoredRun
from rnndiag.store.recording import Recording
from rnndiag.store.writer import RunWriter


class SingleRecording(StoredRun):
    """A run of one recording, in a temporary directory that is removed with this object.

    Args:
        recording: The recording, of a probe for example.
    """

    def __init__(self, recording: Recording) -> None:
        folder = tempfile.mkdtemp(prefix="rnndiag-")
        # TemporaryDirectory would warn if it is not closed
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        with RunWriter(folder, durable=False, strict=True) as writer:
            writer.append(recording)
        super().__init__(folder)

    @property
    def name(self) -> str:
        """A name that identifies the recording."""
        return f"recording of step {self.steps[0]}"


def as_run(source: Any) -> StoredRun:
    """The source as a run: a recording, or an object with one as `recording` (a probe), becomes a run of one.

    Raises:
        BadArgument: It is none of these.
    """
    if isinstance(source, StoredRun):
        return source
    recording = source if isinstance(source, Recording) else getattr(source, "recording", None)
    if not isinstance(recording, Recording):
        raise BadArgument(
            f"A {type(source).__name__} holds no recording.",
            "Give a run (rnndiag.open_run), a recording (probe.recording) or a probe.",
        )
    return SingleRecording(recording)
