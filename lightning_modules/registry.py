"""Entries found by name: one registry per kind of thing, filled by the files of one package."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import Any, Generic, TypeVar

from rnndiag.errors import BadArgument

T = TypeVar("T")


class Registry(Generic[T]):
    """name -> entry. Every module of `package` is imported before the first look-up: a new file is a new entry."""

    def __init__(self, kind: str, package: str) -> None:
        self.kind = kind
        self._package = package
        self._entries: dict[str, T] = {}
        self._loaded = False

    def add(self, name: str, entry: T) -> T:
        """Make `entry` known by `name`."""
        if name in self._entries:
            raise ValueError(f"{self.kind} {name!r} is registered twice")
        self._entries[name] = entry
        return entry

    def _load(self) -> dict[str, T]:
        if not self._loaded:
            self._loaded = True
            package = importlib.import_module(self._package)
            for module in pkgutil.iter_modules(package.__path__):
                importlib.import_module(f"{self._package}.{module.name}")
        return self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._load()))

    def __len__(self) -> int:
        return len(self._load())

    def __contains__(self, name: object) -> bool:
        return name in self._load()

    def __getitem__(self, name: str) -> T:
        entries = self._load()
        if name not in entries:
            near = get_close_matches(name, entries, n=1)
            hint = f"Did you mean {near[0]!r}?" if near else f"Known are: {', '.join(self)}."
            raise BadArgument(f"There is no {self.kind} called {name!r}.", hint)
        return entries[name]

    def build(self, choice: str | Mapping[str, Any]) -> Any:
        """Call the chosen entry: `choice` is its name, or {"name": its name, **options}."""
        options = {"name": choice} if isinstance(choice, str) else dict(choice)
        if "name" not in options:
            raise BadArgument(
                f"The {self.kind} {options!r} does not say which one it is.",
                f"Give it a name: one of {', '.join(self)}.",
            )
        name = options.pop("name")
        entry: Any = self[name]
        known = list(inspect.signature(entry).parameters)
        for option in options:
            if option not in known:
                raise BadArgument(
                    f"The {self.kind} {name!r} has no option {option!r}.",
                    f"Its options are: {', '.join(known) or 'none'}.",
                )
        return entry(**options)
