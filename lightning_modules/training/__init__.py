"""Training estimators: how far and with which weights the gradient goes back in time. One file each."""

from lightning_modules.training.estimator import ESTIMATORS, Estimator

__all__ = ["ESTIMATORS", "Estimator"]
