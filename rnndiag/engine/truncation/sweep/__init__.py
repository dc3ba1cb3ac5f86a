"""The lag sweep: the credit of every lag and the bias of every window, from one pass over all lags."""
