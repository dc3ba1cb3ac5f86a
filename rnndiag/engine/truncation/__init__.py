"""What truncating the gradient costs: the lag sweep, the credit matrix and every estimator of the gradient."""
