"""A run as people read it: the store's reader with reach, window, advice and tables on top."""
