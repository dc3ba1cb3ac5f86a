"""What does the run directory cost: writing against a bare fsync of the same bytes, opening, reading, a cold process?

    python benchmarks/store.py [--recordings 5000] [--arrays 19] [--lags 120] [--json FILE]

Each limit is a promise; the exit status is 1 if one is missed. Ratios come from interleaved runs on the same disk.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.promises import PROMISES, tell
from rnndiag.run.run import open_run
from rnndiag.store import npz, stored
from rnndiag.store.measurement import Measurement
from rnndiag.store.recording import Recording
from rnndiag.store.writer import RunWriter

ROOT = Path(__file__).parent.parent


def recordings(count: int, arrays: int, lags: int) -> Callable[[int], Recording]:
    """A maker of recordings with `arrays` arrays over lags and time, about 57 kB for 19 arrays and 120 lags."""
    rng = np.random.default_rng(0)
    pool = rng.standard_normal((64, lags, 6)).astype(np.float32)
    names = (
        "credit_profile",
        "product_frobenius",
        "adjoint_norm",
        "contribution_norm",
        "window_bias",
    )
    parameters = {"parameter": ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr", "h0")}

    def make(step: int) -> Recording:
        made = []
        for at in range(arrays):
            name, layer = names[at % len(names)], f"encoder.rnn.l{at // len(names)}"
            values = pool[(step + at) % 64]
            if name == "contribution_norm":
                made.append(Measurement.of(name, values.T.copy(), layer, parameters))
            elif name in ("product_frobenius", "adjoint_norm"):
                made.append(Measurement.of(name, values[:, :4].copy(), layer))
            elif name == "window_bias":
                made.append(Measurement.of(name, values.reshape(-1), layer))
            else:
                made.append(Measurement.of(name, values, layer))
        return Recording(step, epoch=0, batch=step, verdict="exact", measurements=tuple(made))

    return make


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds that a call takes, and its result."""
    begin = time.perf_counter()
    result = call()
    return time.perf_counter() - begin, result


def several(call: Callable[[], Any], repeats: int = 5) -> list[float]:
    """Seconds of each of several calls."""
    return [timed(call)[0] for _ in range(repeats)]


def writing(
    folder: Path, make: Callable[[int], Recording], count: int
) -> dict[str, float | list[float]]:
    """Write a run, with a bare write and fsync of as many bytes after each append, in turn; ratios by tenths."""
    size = len(stored.pack(make(0)))
    blob = os.urandom(size)
    ours, bare = np.empty(count), np.empty(count)
    with (
        RunWriter(folder / "run", max_bytes=1 << 40) as writer,
        open(folder / "bare", "wb", 0) as file,
    ):
        for step in range(count):
            recording = make(step)
            ours[step], kept = timed(lambda recording=recording: writer.append(recording))
            assert kept

            def plain() -> None:
                file.write(blob)
                os.fsync(file.fileno())

            bare[step], _ = timed(plain)
    return {
        "recording, kB": size / 1e3,
        "write, ms": 1e3 * float(np.median(ours)),
        "bare fsync, ms": 1e3 * float(np.median(bare)),
        "write / bare fsync": [
            float(np.median(a) / np.median(b))
            for a, b in zip(np.array_split(ours, 10), np.array_split(bare, 10), strict=True)
        ],
        "write / bare fsync, of the sums": float(ours.sum() / bare.sum()),
    }


def codec(make: Callable[[int], Recording]) -> dict[str, float]:
    """Packing and unpacking one recording, against the standard library's zipfile and np.load."""
    recording = make(1)
    data = stored.pack(recording)
    decoder = stored.Decoder({}, {})

    def by_zipfile() -> bytes:
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w") as archive:
            for m in recording.measurements:
                piece = io.BytesIO()
                np.lib.format.write_array(piece, m.values, version=(1, 0), allow_pickle=False)
                archive.writestr(stored.entry_name(m.name, m.layer), piece.getvalue())
        return file.getvalue()

    def by_numpy() -> list[np.ndarray]:
        with np.load(io.BytesIO(data)) as archive:
            return [archive[name] for name in archive.files if not name.endswith(".json")]

    def many(call: Callable[[], Any]) -> float:
        return min(several(lambda: [call() for _ in range(50)])) / 50 * 1e6

    return {
        "pack, us": many(lambda: stored.pack(recording)),
        "pack by zipfile, us": many(by_zipfile),
        "unpack, us": many(lambda: stored.unpack(data, decoder, 0, lambda name, why: None)),
        "unpack by np.load, us": many(by_numpy),
        "directory, us": many(lambda: _directory(data)),
    }


def _directory(data: bytes) -> dict[str, npz.Entry]:
    tail = data[-npz.TAIL_BYTES :]
    start, end = npz.directory_span(tail, len(data))
    return npz.directory(data[start:end], tail, start)


def reading(run: Path) -> dict[str, list[float]]:
    """Opening, one quantity, everything, and a cold process; each with a warm page cache."""
    key = ("credit_profile", "encoder.rnn.l0")
    first = open_run(run)
    assert first[key].values.shape[0] == len(first)
    code = f"import rnndiag; print(rnndiag.open_run({str(run)!r}).reach(0.9))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}

    def cold() -> None:
        subprocess.run(
            [sys.executable, "-c", code], check=True, capture_output=True, env=environment
        )

    bare = several(lambda: subprocess.run([sys.executable, "-c", "import numpy"], check=True))
    return {
        "open, s": several(lambda: open_run(run)),
        "open and name layers, s": several(lambda: open_run(run).layers),
        "one quantity of one layer, s": several(lambda: open_run(run)[key]),
        "everything, s": several(lambda: [r.step for r in open_run(run).recordings]),
        "outlines, s": several(lambda: open_run(run).outlines),
        "cold process to a number, s": several(cold),
        "cold process, numpy alone, s": bare,
    }


def main() -> int:
    """Measure, print, and say whether the limits hold."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recordings", type=int, default=5000)
    parser.add_argument("--arrays", type=int, default=19)
    parser.add_argument("--lags", type=int, default=152)
    parser.add_argument("--dir", type=Path, help="where to write (default: a temporary directory)")
    parser.add_argument("--json", type=Path, help="also write the numbers there")
    args = parser.parse_args()
    make = recordings(args.recordings, args.arrays, args.lags)
    with tempfile.TemporaryDirectory(dir=args.dir) as folder:
        numbers: dict[str, float | list[float]] = {
            **codec(make),
            **writing(Path(folder), make, args.recordings),
        }
        numbers |= reading(Path(folder) / "run")
    missed = 0
    for name, value in numbers.items():
        rounds = value if isinstance(value, list) else [value]
        held = tell(name, rounds, whole=args.recordings >= 5000)
        missed += held is False
        limit = f"   limit {PROMISES[name].limit:g}" if name in PROMISES else ""
        print(f"{name:36s} {median(rounds):10.3f}{limit}{'   MISSED' if held is False else ''}")
    if args.json:
        args.json.write_text(
            json.dumps({"arguments": vars(args), "numbers": numbers}, default=str, indent=1) + "\n"
        )
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
