"""Patterns: which sequence comes in and which goes out. One file each."""

from lightning_modules.patterns.pattern import PATTERNS, Pattern

__all__ = ["PATTERNS", "Pattern"]
