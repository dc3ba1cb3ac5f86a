"""Reads a project's configuration: the table [tool.rnndiag] of a pyproject.toml, or the same as a dict."""

from __future__ import annotations

import difflib
import math
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rnndiag.errors import BadConfig
from rnndiag.health.bounds import Bounds, parse_percent
from rnndiag.health.diagnosis.diagnosis import STATES
from rnndiag.health.diagnosis.finding import FAIL_STATES
from rnndiag.health.rule import all_rules
from rnndiag.store.judged import judged_steps
from rnndiag.store.whole_files import read_regular

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_LEVELS = ("fail", "warn", "off")
_MOST_BYTES = 1 << 20


@dataclass(frozen=True)
class Config:
    """The configuration of all checks. Made by `read_config`."""

    checks: Mapping[str, Bounds] = field(default_factory=dict)
    """Bounds of the checks that the user configured; all others use the defaults of their rule."""
    baseline: Path | None = None
    """The baseline file that is used when `--baseline` is not given."""
    window: str = "last 20%"
    """The recordings that are judged: `last 20%`, `last 10` or `all`, but at least the last `min_recordings`."""
    min_recordings: int = 5
    """Number of values that a check must rest on; with fewer it is not judged (exit code 3 if the user configured it).
    """
    false_alarm: float = 0.01
    """Probability that a healthy run is called changed by one check, over all its layers."""
    min_baseline_runs: int = 5
    """With fewer runs the noise of a baseline is unknown, and changes are compared with `shift` alone."""
    comparable_across: tuple[str, ...] = ()
    """Fields of the fingerprint that may differ between a run and the baseline."""
    fail_states: tuple[str, ...] = FAIL_STATES
    """States of the diagnosis that fail the gate."""
    chance: float | None = None
    """The loss of a constant answer; None: as stored in the run."""
    needs: int | str | None = None
    """Number of steps back that the task needs; None: as stored in the run."""
    source: str = "the defaults"

    def bounds(self, name: str) -> Bounds:
        """The bounds of one check."""
        return self.checks.get(name) or all_rules()[name].defaults

    def with_unfinished(self) -> Config:
        """A copy that judges runs whose training was cut short: the check `unfinished` only warns."""
        warned = self.bounds("unfinished").but(level="warn")
        return replace(self, checks={**self.checks, "unfinished": warned})


def nearest_config(start: Path) -> Config:
    """The configuration of the first pyproject.toml in `start` or a folder above it; the defaults if there is none."""
    for folder in (start, *start.parents):
        if (folder / "pyproject.toml").is_file():
            # Relative to the working directory: messages name the file.
            return _from_file(Path(os.path.relpath(folder / "pyproject.toml")), named=False)
    return Config()


def read_config(source: Config | str | Path | Mapping[str, Any] | None) -> Config:
    """The configuration from a file, from the content of [tool.rnndiag] as a dict, or the defaults.

    Raises:
        BadConfig: The file cannot be read, has no table [tool.rnndiag], or holds what is not understood.
    """
    if source is None:
        return Config()
    if isinstance(source, Config):
        return source
    if isinstance(source, Mapping):
        return _from_table(source, "the configuration", Path())
    return _from_file(Path(source), named=True)


def _from_file(path: Path, named: bool) -> Config:
    """The configuration in a file; if the user named the file, it must have the table."""
    try:
        document = tomllib.loads(read_regular(path, _MOST_BYTES).decode())
    except OSError as error:
        why = error.strerror or error
        raise BadConfig(
            f"The configuration {path} cannot be read: {why}.", "Check --config."
        ) from error
    except (ValueError, RecursionError) as error:
        raise BadConfig(f"{path} is not valid TOML: {error}.", "Correct that line.") from error
    tool = document.get("tool", {})
    tool = tool if isinstance(tool, dict) else {}
    if "rnndiag" not in tool:
        meant = difflib.get_close_matches("rnndiag", tool, n=1, cutoff=0.8)
        # A file that was only found may belong to a project without rnndiag; a misspelt table is an error.
        if named or meant:
            raise BadConfig(
                f"{path} has no table [tool.rnndiag].",
                f"Rename [tool.{meant[0]}]."
                if meant
                else "Write the checks there, or name another file.",
            )
    table = _table(tool.get("rnndiag", {}), "tool.rnndiag", str(path))
    return _from_table(table, str(path), path.parent)


def _from_table(table: Mapping[str, Any], source: str, folder: Path) -> Config:
    _known(table, (*_PROJECT, "checks"), "tool.rnndiag", source)
    checks = _table(table.get("checks", {}), "tool.rnndiag.checks", source)
    _known(checks, (*_SETTINGS, *all_rules()), "tool.rnndiag.checks", source)
    values = _read(_PROJECT, table, "", source) | _read(_SETTINGS, checks, "checks.", source)
    if "baseline" in values:
        values["baseline"] = folder / values["baseline"]
    rules = {name: _bounds(name, checks[name], source) for name in all_rules() if name in checks}
    return Config(checks=rules, source=source, **values)


def _read(
    readers: Mapping[str, _Reader], table: Mapping[str, Any], where: str, source: str
) -> dict[str, Any]:
    """The known settings of a table, each read by its own function; `where` is put before their names in errors."""
    return {
        name: read(table[name], f"{where}{name}", source)
        for name, read in readers.items()
        if name in table
    }


def _states(value: Any, where: str, source: str) -> tuple[str, ...]:
    named = _texts(value, where, source) if value != [] else ()
    for state in named:
        if state not in STATES:
            raise _wrong(where, value, f"states among {', '.join(STATES)}", source)
    return named


def _bounds(name: str, value: Any, source: str) -> Bounds:
    where = f"checks.{name}"
    table = _table(value, f"tool.rnndiag.{where}", source)
    _known(table, _BOUNDS, f"tool.rnndiag.{where}", source)
    if "layers" in table and all_rules()[name].owner == "model":
        raise BadConfig(
            f"{where} has layers, but {name} is a number of the whole model ({source}).",
            "Leave layers out.",
        )
    read = _read(_BOUNDS, table, f"{where}.", source)
    bounds = all_rules()[name].defaults.but(configured=True, **read)
    if bounds.min is not None and bounds.max is not None and bounds.min > bounds.max:
        raise BadConfig(
            f"{where}: min = {bounds.min:g} is above max = {bounds.max:g} ({source}).",
            "No number can pass that: swap or correct them.",
        )
    return bounds


def _wrong(where: str, value: Any, expected: str, source: str) -> BadConfig:
    shown = repr(value)
    shown = shown if len(shown) <= 60 else shown[:57] + "..."
    return BadConfig(f"{where} = {shown} is not understood ({source}).", f"Expected {expected}.")


def _known(table: Mapping[str, Any], allowed: Iterable[str], where: str, source: str) -> None:
    allowed = tuple(allowed)
    for key in table:
        if key in allowed:
            continue
        close = difflib.get_close_matches(str(key), allowed, n=1, cutoff=0.5)
        hint = f"Did you mean {close[0]!r}?" if close else f"Known are: {', '.join(allowed)}."
        raise BadConfig(f"Unknown key {str(key)[:60]!r} in [{where}] ({source}).", hint)


def _table(value: Any, where: str, source: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise _wrong(where, value, f"a table [{where}]", source)
    return value


def _text(value: Any, where: str, source: str) -> str:
    if not isinstance(value, str) or not value.strip() or "\0" in value:
        raise _wrong(where, value, "a text", source)
    return value


def _texts(value: Any, where: str, source: str) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not value:
        raise _wrong(where, value, "a list of texts", source)
    return tuple(_text(item, where, source) for item in value)


def _number(value: Any, where: str, source: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _wrong(where, value, "a number", source)
    if abs(value) > 1e300 or not math.isfinite(value):
        raise _wrong(where, value, "a finite number", source)
    return float(value)


def _count(value: Any, where: str, source: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 10**9:
        raise _wrong(where, value, "a whole number of at least 1", source)
    return value


def _window(value: Any, where: str, source: str) -> str:
    try:
        judged_steps([1], _text(value, where, source))
    except (BadConfig, ValueError) as error:
        raise _wrong(where, value, "'all', 'last 20%' or 'last 10'", source) from error
    return str(value)


def _percent(value: Any, where: str, source: str) -> float:
    try:
        return parse_percent(_text(value, where, source))
    except ValueError as error:
        raise _wrong(where, value, "a percentage such as '10%'", source) from error


def _change(value: Any, where: str, source: str) -> str:
    text = _text(value, where, source)
    if text not in ("noise", "off"):
        try:
            parse_percent(text)
        except ValueError as error:
            raise _wrong(
                where, value, "'noise', 'off' or a percentage such as '10%'", source
            ) from error
    return text


def _level(value: Any, where: str, source: str) -> str:
    if _text(value, where, source) not in _LEVELS:
        raise _wrong(where, value, " or ".join(map(repr, _LEVELS)), source)
    return str(value)


def _false_alarm(value: Any, where: str, source: str) -> float:
    share = _number(value, where, source)
    if not 1e-9 <= share < 0.5:
        raise _wrong(where, value, "a share below 0.5", source)
    return share


def _needs(value: Any, where: str, source: str) -> int | str:
    """A number of steps, or a duration in the time unit of the run."""
    return (_text if isinstance(value, str) else _count)(value, where, source)


_Reader = Callable[[Any, str, str], Any]
"""Returns a value as its setting needs it, or raises BadConfig, which names the setting and the file."""

_PROJECT: Mapping[str, _Reader] = {
    "baseline": _text,
    "comparable_across": _texts,
    "chance": _number,
    "needs": _needs,
}
_SETTINGS: Mapping[str, _Reader] = {
    "window": _window,
    "min_recordings": _count,
    "false_alarm": _false_alarm,
    "min_baseline_runs": _count,
    "fail_states": _states,
}
_BOUNDS: Mapping[str, _Reader] = {
    "min": _number,
    "max": _number,
    "window": _window,
    "change": _change,
    "shift": _percent,
    "level": _level,
    "layers": _texts,
    "min_recordings": _count,
}
