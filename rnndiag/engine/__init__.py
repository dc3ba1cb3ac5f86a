"""Exact mathematics on tensors: cells, layer runs, adjoints, truncation, spectra. No Lightning, no files."""
