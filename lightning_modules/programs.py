"""The programs: one configuration file each, in full size and small. The file's first lines say what it shows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from lightning_modules.data import TaskData
from lightning_modules.program import Program
from rnndiag.errors import BadArgument

HERE = Path(__file__).parent
CONFIGS = HERE / "configs"


@dataclass(frozen=True)
class Entry:
    """One program."""

    name: str
    title: str
    """One sentence of what it shows."""
    lectures: tuple[int, ...]
    """The rows of the lectures' table that it runs."""

    def files(self, small: bool = False) -> list[Path]:
        """Its configuration, and the one that makes it small."""
        full = CONFIGS / f"{self.name}.yaml"
        return [full, CONFIGS / "small" / full.name] if small else [full]

    def arguments(self, small: bool = False) -> list[str]:
        """What follows `python -m lightning_modules`, from the repository's root."""
        root = HERE.parent
        pairs = (("--config", str(file.relative_to(root))) for file in self.files(small))
        return ["fit", *(word for pair in pairs for word in pair)]

    def command(self, small: bool = False) -> str:
        """The command that trains it."""
        return " ".join(["python -m lightning_modules", *self.arguments(small)])

    def settings(self, small: bool = False) -> dict[str, Any]:
        """Its configuration as LightningCLI merges it: what comes later replaces what came before."""
        merged: dict[str, Any] = {}
        for file in self.files(small):
            for section, values in (yaml.safe_load(file.read_text(encoding="utf-8")) or {}).items():
                before = merged.get(section, {})
                merged[section] = {**before, **values} if isinstance(values, Mapping) else values
        return merged

    def build(self, small: bool = False, **model: Any) -> tuple[Program, TaskData]:
        """Program and data without the command line; `model` replaces options of the program."""
        settings = self.settings(small)
        options = {**settings["model"], **model}
        seed = settings["seed_everything"]
        return Program(**options), TaskData(options["task"], seed=seed, **settings["data"])


@lru_cache
def entries() -> dict[str, Entry]:
    """Every program by name."""
    return {file.stem: _read(file) for file in sorted(CONFIGS.glob("*.yaml"))}


def entry(name: str) -> Entry:
    """The program of that name."""
    known = entries()
    if name not in known:
        raise BadArgument(f"There is no program {name!r}.", f"Known are: {', '.join(known)}.")
    return known[name]


def _read(file: Path) -> Entry:
    title, lectures = file.read_text(encoding="utf-8").splitlines()[:2]
    rows = lectures.removeprefix("# Lectures: ").split(", ")
    return Entry(file.stem, title.removeprefix("# "), tuple(int(row) for row in rows))
