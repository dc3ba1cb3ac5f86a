"""What do a check on 1,000 recordings, the frozen gate, `rnndiag --help` and `import rnndiag` take from a cold start?

    python benchmarks/gate.py [--recordings 1000] [--repeats 5]

Cold processes, interleaved with a bare Python and one that imports numpy. The exit status is 1 where a limit is missed.
"""

from __future__ import annotations

import argparse
import math
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.promises import PROMISES, tell
from rnndiag.store.measurement import Measurement
from rnndiag.store.recording import Recording
from rnndiag.store.writer import RunWriter

ROOT = Path(__file__).parents[1]
MAIN = "import sys; sys.path.insert(0, {root!r}); from rnndiag.cli import main; sys.exit(main(sys.argv[1:]))"
EXAMPLE = ROOT / "docs" / "ci" / "example"
"""The project whose frozen gate is timed; it needs torch, in a process of its own."""
T, DECAY = 200, 0.97


def recording(step: int) -> Recording:
    """Two layers, 19 arrays: what a callback stores, by closed forms."""
    lags = np.arange(T) * math.log(DECAY)
    found = [
        Measurement.of("loss", np.array(1.0)),
        Measurement.of("total_gradient_norm", np.array(1.0)),
        Measurement.of("window_in_use", np.array(float(T))),
    ]
    for layer in ("rnn.l0", "rnn.l1"):
        found += [
            Measurement.of("credit_profile", np.repeat(lags[:, None], 6, 1), layer),
            Measurement.of("adjoint_norm", np.ones((T, 4)), layer),
            Measurement.of("valid_samples", np.full(T, 32.0), layer),
            Measurement.of("nonfinite_states", np.zeros(T), layer),
            Measurement.of("nonfinite_adjoints", np.zeros(T), layer),
            Measurement.of("window_bias", DECAY ** np.arange(T), layer),
            Measurement.of(
                "residual", np.full(2, 1e-7), layer, {"parameter": ("weight_ih", "weight_hh")}
            ),
            Measurement.of("spectral_radius", np.array([DECAY]), layer, {"block": ("h",)}),
        ]
    return Recording(step=step, verdict="exact", measurements=tuple(found))


def seconds(*words: str, cwd: Path) -> tuple[float, int]:
    """Wall time and exit code of one cold process."""
    began = time.perf_counter()
    done = subprocess.run([sys.executable, *words], cwd=cwd, capture_output=True, check=False)
    return time.perf_counter() - began, done.returncode


def main() -> int:
    """Make the run, time the processes, print medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recordings", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with RunWriter(folder / "run", {}, durable=False) as writer:
            for step in range(args.recordings):
                writer.append(recording(step))
        (folder / "strict.toml").write_text("[tool.rnndiag.checks.reach]\nmin = 190\n")
        command = MAIN.format(root=str(ROOT))
        cases = {
            "python -c 'pass'": (("-c", "pass"), 0),
            "import rnndiag": (
                ("-c", f"import sys; sys.path.insert(0, {str(ROOT)!r}); import rnndiag"),
                0,
            ),
            "import numpy": (("-c", "import numpy"), 0),
            "check that passes": (("-c", command, "check", "run"), 0),
            "check that fails": (("-c", command, "check", "run", "--config", "strict.toml"), 1),
            "rnndiag --help": (("-c", command, "--help"), 0),
            "frozen gate": (("-c", command, "check", "--snapshot", "snapshot"), 0),
        }
        times: dict[str, list[float]] = {case: [] for case in cases}
        for _ in range(args.repeats):
            for case, (words, code) in cases.items():
                where = EXAMPLE if case == "frozen gate" else folder
                took, got = seconds(*words, cwd=where)
                if got != code:
                    raise SystemExit(f"{case} exited with {got}, not {code}")
                times[case].append(took)
    missed = 0
    for case, taken in times.items():
        held = tell(case, taken, unit="s", whole=args.recordings >= 1000)
        missed += held is False
        best, median = min(taken), statistics.median(taken)
        limit = f"   limit {PROMISES[case].limit:g}" if case in PROMISES else ""
        print(f"{case:<26} median {median:6.3f} s   best {best:6.3f} s{limit}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
