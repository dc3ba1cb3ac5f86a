"""All programs that loop over a state in the ways of published models."""

from __future__ import annotations

# each enters its programs in the list
from loops.programs import between_steps, carried, feedback, jumping, own_cells  # noqa: F401
from loops.programs.base import PROGRAMS

__all__ = ["PROGRAMS"]
