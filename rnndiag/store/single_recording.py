"""A recording that lies in memory, read as a run of one recording."""

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
    """A run in a temporary directory, which is removed with it.

    Args:
        recording: The recording, of a probe for example.
    """

    def __init__(self, recording: Recording) -> None:
        folder = tempfile.mkdtemp(prefix="rnndiag-")
        # TemporaryDirectory would warn where nobody closes it
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        with RunWriter(folder, durable=False, strict=True) as writer:
            writer.append(recording)
        super().__init__(folder)

    @property
    def name(self) -> str:
        """Which recording it is."""
        return f"recording of step {self.steps[0]}"


def as_run(source: Any) -> StoredRun:
    """A run as it is; a recording, or what holds one as `recording` (a probe), as a run of one.

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
