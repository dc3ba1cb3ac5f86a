"""Runs the notebooks of the docs and stores what their cells print and draw: `python scripts/notebooks.py`.

A notebook is a JSON file of cells. No notebook server is needed: the code cells run by `exec` in one namespace, in a
directory of their own. The site shows the stored outputs, and a test holds the printed ones against a new run.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[1] / "docs" / "notebooks"


def text_of(part: str | list[str]) -> str:
    """Notebooks keep text as one string or as lines."""
    return part if isinstance(part, str) else "".join(part)


def run_cells(cells: list[dict[str, Any]], name: str) -> Iterator[tuple[str, list[bytes]]]:
    """Run the code cells in the current directory; what each printed, and the figures (PNG) that it drew."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    space: dict[str, object] = {"__name__": "notebook"}
    for number, cell in enumerate(cells):
        if cell["cell_type"] != "code":
            continue
        screen = io.StringIO()
        with contextlib.redirect_stdout(screen):
            exec(compile(text_of(cell["source"]), f"{name}, cell {number}", "exec"), space)
        pictures = []
        for figure in map(plt.figure, plt.get_fignums()):
            drawn = io.BytesIO()
            figure.savefig(drawn, format="png", dpi=110, metadata={"Software": None})
            pictures.append(drawn.getvalue())
        plt.close("all")
        yield screen.getvalue(), pictures


def markdown(file: Path) -> str:
    """A notebook with its stored outputs as Markdown, for the site."""
    parts = []
    for cell in json.loads(file.read_text(encoding="utf-8"))["cells"]:
        source = text_of(cell["source"]).rstrip()
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        for output in cell["outputs"]:
            if "text" in output:
                parts.append(f"```text\n{text_of(output['text']).rstrip()}\n```")
            else:
                data = text_of(output["data"]["image/png"]).replace("\n", "")
                parts.append(f"![The figure that this cell draws](data:image/png;base64,{data})")
    return "\n\n".join(parts)


def store(file: Path) -> None:
    """Run a notebook and write its outputs into it."""
    notebook = json.loads(file.read_text(encoding="utf-8"))
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    for count, (cell, (printed, pictures)) in enumerate(
        zip(code, run_cells(notebook["cells"], file.name), strict=True), 1
    ):
        outputs: list[dict[str, Any]] = []
        if printed:
            outputs.append(
                {"name": "stdout", "output_type": "stream", "text": printed.splitlines(True)}
            )
        for picture in pictures:
            data = {"image/png": base64.b64encode(picture).decode()}
            outputs.append({"data": data, "metadata": {}, "output_type": "display_data"})
        cell.update(execution_count=count, outputs=outputs)
    file.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    for chosen in sorted(FOLDER.glob("*.ipynb")):
        with tempfile.TemporaryDirectory() as scratch:
            os.chdir(scratch)
            store(chosen)
        sys.stdout.write(f"{chosen.name}\n")
