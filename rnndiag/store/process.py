"""Whether the process that writes a run is still alive."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def process_started(pid: int) -> int | None:
    """Start time of a process in clock ticks since boot; None if the system does not report it."""
    try:
        text = Path(f"/proc/{pid}/stat").read_bytes()
        return int(text[text.rindex(b")") + 2 :].split()[19])
    except (OSError, ValueError, IndexError):
        return None


def host_name() -> str:
    """The name of this machine."""
    import socket  # imported here: it takes 3 ms and is seldom needed

    return socket.gethostname()


def is_alive(process: Mapping[str, Any]) -> bool | None:
    """Whether the process is alive, by host, pid and start time; None if that is unknown (another machine, Windows)."""
    pid = process.get("pid")
    if process.get("host") != host_name() or not isinstance(pid, int) or not 0 < pid < 2**31:
        return None
    if os.name == "nt":  # on Windows, signal 0 is not a mere test
        return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    started = process_started(pid)
    return started is None or process.get("started") in (None, started)
