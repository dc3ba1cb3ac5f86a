"""A process whose allocator keeps what it is given back, so that page faults do not fall on one fit by chance.

glibc gives the end of its heap back to Linux and takes it anew, or does not, as blocks happen to lie: two fits of the
same program, in turns, can differ by that alone. `keep_memory()` starts the process again with tunables that stop that,
and returns in the new one.
"""

from __future__ import annotations

import os
import sys

TUNABLES = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(2**32),
    "MALLOC_TRIM_THRESHOLD_": str(2**32),
    "MALLOC_TOP_PAD_": str(2**26),
}


def keep_memory() -> None:
    """Start this process again with the tunables set, unless they are. Elsewhere than on Linux, do nothing."""
    missing = {name: value for name, value in TUNABLES.items() if name not in os.environ}
    if missing and sys.platform == "linux":
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **missing})
