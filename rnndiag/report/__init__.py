"""Numpy only: figures computed from a run and its findings, and the one HTML page that shows them."""
