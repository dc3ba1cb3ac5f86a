"""What do check, report, compare and show do with 3,000 damaged runs: exit codes, the slowest command, any fault?

    python -m benchmarks.mutations [COUNT] [SEED]

A fault is an exit code of 4, a traceback, a command of more than 20 s of processor time, a file written elsewhere than
where the command was told to, or a pass of a run that fails unharmed.
"""

from __future__ import annotations

import contextlib
import io
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from mutated_runs import mutants
from report_runs import write

from rnndiag.cli import main

MOST_SECONDS = 20.0
CONFIG = '[tool.rnndiag.checks.reach]\nmin = 23\nchange = "off"\n'


def measure(count: int, seed: int) -> int:
    """Print what the damaged runs gave; the number of faults."""
    folder = Path(tempfile.mkdtemp(prefix="rnndiag-mutated-"))
    run = write(folder / "run", steps=range(0, 60, 10), T=12)
    config = folder / "pyproject.toml"
    config.write_text(CONFIG)
    commands = (
        ["check", str(run), "--config", str(config)],
        ["report", str(run), "-o", str(folder / "page.html")],
        ["compare", str(run), str(run), "-o", str(folder / "compare.html")],
        ["show", str(run)],
    )
    expected = {"run", config.name, "page.html", "compare.html"}
    codes: Counter[tuple[str, int]] = Counter()
    faults, slowest = 0, 0.0
    for number in mutants(run, count, seed):
        for words in commands:
            told = io.StringIO()
            begun = (
                time.process_time()
            )  # of this process: other programs on the machine are no fault
            with contextlib.redirect_stdout(told), contextlib.redirect_stderr(told):
                code = main(words)
            seconds = time.process_time() - begun
            slowest = max(slowest, seconds)
            codes[words[0], code] += 1
            passed = words[0] == "check" and code == 0
            if code == 4 or passed or seconds > MOST_SECONDS or "Traceback" in told.getvalue():
                faults += 1
                sys.stdout.write(
                    f"fault in mutant {number}, {words[0]}: {told.getvalue()[-400:]}\n"
                )
        if number % 100 == 99:
            sys.stderr.write(f"{number + 1} runs, {faults} faults\n")
    strange = {path.name for path in folder.iterdir()} - expected
    strange |= {path.name for path in run.iterdir()} - {"recordings", "run.json"}
    if strange:
        faults += 1
        sys.stdout.write(f"fault: files written elsewhere: {', '.join(sorted(strange))}\n")
    for (command, code), times in sorted(codes.items()):
        sys.stdout.write(f"{command:8s} exit {code}: {times}\n")
    sys.stdout.write(f"slowest command {slowest:.1f} s; {faults} faults\n")
    return faults


if __name__ == "__main__":
    given = [int(word) for word in sys.argv[1:]]
    sys.exit(bool(measure(given[0] if given else 3000, given[1] if len(given) > 1 else 1)))
