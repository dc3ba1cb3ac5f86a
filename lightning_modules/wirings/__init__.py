"""Wirings: how layers and steps are put together. One file each."""

from lightning_modules.wirings.wiring import WIRINGS, Plan, Wiring

__all__ = ["WIRINGS", "Plan", "Wiring"]
