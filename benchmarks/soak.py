"""Do memory, open files and disk stay bounded over 20,000 recorded steps, and does the run say what was dropped?

python -m benchmarks.soak [STEPS]
"""

from __future__ import annotations

import os
import resource
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from closed_form_runs import PROVENANCE, measurements, of_model

import rnndiag
from rnndiag.health import exit_code
from rnndiag.store.recording import Recording
from rnndiag.store.writer import RunWriter

MAX_BYTES = 32 << 20


def soak(steps: int) -> None:
    """Record `steps` steps into a run of at most MAX_BYTES, and print what it took."""
    folder = Path(tempfile.mkdtemp(prefix="rnndiag-soak-")) / "run"
    content = (*measurements("rnn.l0", 0.95), *of_model())
    writer = RunWriter(folder, PROVENANCE, max_bytes=MAX_BYTES, durable=False)
    begun, memory, files = time.perf_counter(), 0, 0
    for step in range(steps):
        if writer.wants(step):
            writer.append(Recording(step, verdict="exact", measurements=content))
        if step == steps // 10:
            memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            files = len(os.listdir("/proc/self/fd"))
    writer.close(final_step=steps - 1)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory
    opened = len(os.listdir("/proc/self/fd")) - files
    run = rnndiag.open_run(folder)
    (end,) = run.endings
    code = exit_code(rnndiag.check(run))
    sys.stdout.write(
        f"{steps} steps in {time.perf_counter() - begun:.0f} s: {len(run)} recordings, {run.size / 2**20:.1f} of "
        f"{MAX_BYTES / 2**20:.0f} MiB, last step {run.steps[-1]}\n"
        f"after a tenth: memory grew by {grown / 1024:.1f} MiB, open files by {opened}\n"
        f"dropped: {end.dropped} from step {end.first_dropped} ({end.why_dropped}); exit code of check {code}\n"
    )
    if run.size > MAX_BYTES + (1 << 20) or grown > 64 << 10 or opened > 0:
        raise SystemExit("a bound is broken")
    if end.dropped and code == 0:
        raise SystemExit("what was dropped was passed")


if __name__ == "__main__":
    soak(int(sys.argv[1]) if len(sys.argv) > 1 else 20_000)
