"""Truncated gradients: the lag sweep, the credit matrix and the estimators of the gradient."""
