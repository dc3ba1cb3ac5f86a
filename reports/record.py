"""`python -m reports.record [NAME ...]`: record the gallery's runs anew and write its pages.

`--pages` writes the pages of the runs that are there, without training anything.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from pathlib import Path

from reports.entries import ENTRIES, Entry
from reports.pages import write_pages

ROOT = Path(__file__).parent.parent
MOST_BYTES = 300_000
"""What one run may take in the repository."""


def arguments(entry: Entry) -> list[str]:
    """What follows `python -m lightning_modules`."""
    configs = Path("lightning_modules/configs")
    files = (configs / f"{entry.program}.yaml", configs / "small" / f"{entry.program}.yaml")
    callback = {
        "dirpath": f"reports/{entry.name}/{entry.name}",
        "every_n_steps": entry.every,
        "samples": 4,
        "report": "false",
        "screen": "false",
    }
    trainer = {
        "max_steps": entry.steps,
        "limit_val_batches": 0,
        "enable_progress_bar": "false",
        "accelerator": "cpu",
    }
    return [
        "fit",
        *(f"--config={file}" for file in files),
        *(f"--trainer.{name}={value}" for name, value in trainer.items()),
        *(f"--trainer.callbacks.{name}={value}" for name, value in callback.items()),
        *entry.options,
    ]


def record(entry: Entry) -> None:
    """Train and record one run, and keep it small."""
    from lightning_modules.__main__ import run
    from rnndiag.store.compact import compact

    folder = ROOT / "reports" / entry.name / entry.name
    shutil.rmtree(folder, ignore_errors=True)
    begun = time.monotonic()
    words = arguments(entry)
    sys.argv = ["python -m lightning_modules", *words]
    run(words)
    compact(folder, MOST_BYTES)
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    seconds = time.monotonic() - begun
    sys.stderr.write(f"{entry.name}: {seconds:.0f} s, {size / 1000:.0f} kB\n")


def main() -> None:
    """Record what was asked for, then write all pages."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="runs to record (default: all)")
    parser.add_argument("--pages", action="store_true", help="only write the pages")
    chosen = parser.parse_args()
    os.chdir(ROOT)
    known = {entry.name: entry for entry in ENTRIES}
    unknown = [name for name in chosen.names if name not in known]
    if unknown:
        parser.error(f"there is no run {unknown[0]!r}; there are {', '.join(known)}")
    if not chosen.pages:
        for name in chosen.names or known:
            record(known[name])
    for page in write_pages():
        sys.stdout.write(f"{page}\n")


if __name__ == "__main__":
    main()
