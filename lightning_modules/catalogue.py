"""Everything there is to choose from, by name."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from lightning_modules.cells import CELLS
from lightning_modules.initialisation import RULES
from lightning_modules.patterns import PATTERNS
from lightning_modules.registry import Registry
from lightning_modules.regularisation import REGULARISATIONS
from lightning_modules.tasks import TASKS
from lightning_modules.training import ESTIMATORS
from lightning_modules.wirings import WIRINGS

CATALOGUE: Mapping[str, Registry[Any]] = MappingProxyType(
    {
        registry.kind: registry
        for registry in (CELLS, WIRINGS, PATTERNS, TASKS, ESTIMATORS, REGULARISATIONS)
    }
)
"""Kind -> its registry."""


def listing() -> str:
    """One line a kind."""
    rows = [f"{kind:15} {', '.join(registry)}" for kind, registry in CATALOGUE.items()]
    return "\n".join([*rows, f"{'initialisation':15} {', '.join(RULES)}"])
