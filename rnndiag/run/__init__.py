"""The run as users see it: the store's reader extended by reach, window, advice and tables."""
