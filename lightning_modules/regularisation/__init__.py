"""Regularisations: one file each."""

from lightning_modules.regularisation.regularisation import REGULARISATIONS, Regularisation

__all__ = ["REGULARISATIONS", "Regularisation"]
