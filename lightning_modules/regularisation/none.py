"""No regularisation."""

from lightning_modules.regularisation.regularisation import REGULARISATIONS, Regularisation

REGULARISATIONS.add("none", Regularisation)
