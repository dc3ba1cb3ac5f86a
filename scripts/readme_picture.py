"""The README's end screen and its picture of the page, from the tutorial's code: python scripts/readme_picture.py

Runs the Python blocks of docs/tutorial.md, prints what they print (the end screens of both fits among it), and draws
docs/page.png: the first screen of the report of the first fit. Needs Chromium.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from PIL import Image

DOCS = Path(__file__).parents[1] / "docs"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
SIZE, COLOURS = (1100, 820), 64


def run_tutorial() -> None:
    """Run the tutorial in the current folder; its runs are then in `runs/`."""
    space: dict[str, object] = {"__name__": "tutorial"}
    for block in BLOCK.findall((DOCS / "tutorial.md").read_text(encoding="utf-8")):
        exec(compile(block, "tutorial.md", "exec"), space)


def photograph(page: Path, picture: Path) -> None:
    """The first screen of a page, in the light theme, as a small PNG."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        raise SystemExit("There is no Chromium: run scripts/install-browser.")
    shot = page.with_suffix(".png")
    size = f"--window-size={SIZE[0]},{SIZE[1]}"
    options = ["--headless", "--no-sandbox", "--hide-scrollbars", size, f"--screenshot={shot}"]
    subprocess.run([browser, *options, page.resolve().as_uri()], check=True, capture_output=True)
    with Image.open(shot) as whole:
        whole.convert("RGB").quantize(COLOURS).save(picture, optimize=True)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        run_tutorial()
        photograph(Path("runs/broken/report.html"), DOCS / "page.png")


if __name__ == "__main__":
    main()
